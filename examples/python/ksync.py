"""ksync for SQLAlchemy 2 and Django 4.2 or later: announces changes through ksync-stream --serve, works on them.
    __ksync_topic__ = "products"  # in the model, and def ksync_payload(self): what handlers get, if not {"id": 7}
    ksync.announce(Session)       # SQLAlchemy: Session or a sessionmaker
    ksync.announce(Product)       # Django: in AppConfig.ready(); and in the model objects = ksync.QuerySet.as_manager()
    with ksync.bulk(products):    # around what neither tells, see below
    ksync.work(function)          # all that a program for ksync-consume --worker has to do
KSYNC_SOCKET (/run/ksync/stream.sock), KSYNC_ANSWER_TIMEOUT (5, in seconds); KSYNC_ON_ERROR=log: what cannot be
announced is committed all the same; KSYNC_DISABLED=1: nothing is sent. For tests: ksync.sent = [] collects.
Neither tells of SQL. SQLAlchemy tells nothing of session.execute(update(..)), query.update() and session.bulk_*();
Django nothing of SET_NULL, of _raw_delete(), of another manager's update() and bulk_create(), and, where a relation of
many to many is cleared or one of its records deleted, of the records on the other side.
A commit waits for Kafka: under asyncio, also by an AsyncSession, all that the event loop runs waits with it."""
import contextlib, datetime, decimal, enum, functools, json, logging, os, socket, time, uuid
try: from sqlalchemy import event, inspect
except ImportError: inspect = lambda record, **_: None
try:
    from django.conf import settings
    from django.db import connections, models, router, transaction
    from django.db.backends.base.base import BaseDatabaseWrapper
except ImportError: models = None

log, sent = logging.getLogger("ksync"), None
to_json = functools.partial(json.dumps, default=str, ensure_ascii=False, separators=(",", ":"))
# What is older goes once more before the commit, since who renews it may be gone; half of the shortest sensible delay.
FRESH_SECS = 30

class Error(Exception): """A change cannot be announced, so it is not committed."""
class Failed(Exception): """Raised with its list by the function of a worker, once all others are done, to return it."""

def message(topic, id, payload=None):  # for bulk(), where there is no object; the id of several columns is a list
    id = plain(id)
    key = id if isinstance(id, str) else to_json(id)
    return {"topic": topic, "key": key, "payload": {"id": id} if payload is None else payload}

def plain(id):  # as ksync-stream writes it: handlers take any other text for another row
    if isinstance(id, (list, tuple)): return [plain(part) for part in id] if len(id) > 1 else plain(*id)
    if isinstance(id, (bytes, memoryview)): return f"\\x{bytes(id).hex()}"
    if isinstance(id, (uuid.UUID, datetime.date)): return str(id)
    if isinstance(id, decimal.Decimal) and id.as_tuple().exponent == 0: return int(id)
    if isinstance(id, (str, int, float)) and not isinstance(id, enum.Enum): return id
    raise Error(f"cannot announce a record with the primary key {id!r}: how the database writes it is not known")

def describe(record, id=None, payload=None):
    if id is None: id = record.pk if hasattr(record, "_meta") else inspect(record).identity
    if hasattr(record, "_meta"): id = getattr(id, "value", id)  # that of one of Django's choices
    return message(record.__ksync_topic__, id, payload or getattr(record, "ksync_payload", lambda: None)())

class Changes:
    """Those of a transaction, with a connection that no thread or process shares: with it they are forgotten, too."""
    def __init__(self):
        self.messages, self.link, self.pid, self.is_committing, self.is_given_up = {}, None, os.getpid(), False, False
        self.failure, self.since = None, 0  # on failure the side process does not know them all, else since then

    def __del__(self): self.end("forget")
    def __call__(self): self.end("instant")  # as a hook of Django

    def add(self, messages):  # and go on: settle() waits for the answers
        if not messages or os.environ.get("KSYNC_DISABLED") == "1": return
        added = {(message["topic"], message["key"]): message for message in messages}
        self.messages.update(added)
        if not self.failure: self.attempt("delay", list(added.values()), waits=False)  # else settle() sends all

    def settle(self, op="delay"):  # when Kafka has all; what the side process or the connection has lost goes once more
        if not self.messages or (op == "delay" and self.is_given_up): return
        is_old = op == "delay" and time.monotonic() - self.since > FRESH_SECS
        for again in False, True:
            if isinstance(self.failure, socket.timeout) and (again or op == "delay"): break  # once is long enough
            self.attempt(op, list(self.messages.values()) if self.failure or is_old else [])
            if not self.failure: return
        if op == "delay" and os.environ.get("KSYNC_ON_ERROR") != "log":
            failure, self.failure = self.failure, True  # whoever tries to commit again has it tried again
            raise Error(f"cannot send delay messages through {self.path}: {failure}; nothing is committed") from failure
        self.is_given_up = True
        log.error("cannot send %s messages through %s: %s", op, self.path, self.failure)

    def end(self, op):
        if op == "instant": self.settle(op)  # it is committed; if this fails, the delay messages bring the records up
        elif self.link and self.pid == os.getpid():
            with contextlib.suppress(OSError):
                self.link.settimeout(0.1)  # with answers unread it would warn of us, but Kafka may be slow
                self.link.shutdown(socket.SHUT_WR)
                self.answers.read()
        self.hang_up()
        self.__init__()

    def attempt(self, op, messages, waits=True):
        self.failure = True  # until its end, before which somebody else's exception may come
        if len(messages) == len(self.messages): self.since = time.monotonic()
        try:
            if messages or op == "instant": self.ask(op, messages)
            if waits: self.read()
            self.failure = None
        except (OSError, ValueError) as error:
            self.hang_up()
            self.failure = error.with_traceback(None)  # its frames would hold these changes beyond their end

    def hang_up(self):
        if self.link:
            self.answers.close()
            self.link.close()
        self.link = None

    def ask(self, op, messages):
        if sent is not None: return sent.extend({"op": op, **message} for message in messages or self.messages.values())
        if not self.link:
            self.path, self.asked, self.answered = os.environ.get("KSYNC_SOCKET", "/run/ksync/stream.sock"), 0, 0
            self.link = socket.socket(socket.AF_UNIX)
            self.answers = self.link.makefile("rb")
            self.link.settimeout(float(os.environ.get("KSYNC_ANSWER_TIMEOUT", "5")))
            self.link.connect(self.path)
        texts = [to_json(message).encode() for message in messages]
        count = -(-8_000_000 // max([32_000, *map(len, texts)]))  # 250 or fewer: a request may have 16 MiB
        for at in range(0, len(texts) or 1, count):
            self.read(99)  # or the side process would stop to read requests
            self.asked += 1
            request = self.asked, op.encode(), b",".join(texts[at:at + count])
            self.link.sendall(b'{"id":%d,"tx":1,"op":"%s","messages":[%s]}\n' % request)

    def read(self, missing=0):  # until no more answers than these are missing
        while self.link and self.asked - self.answered > missing:
            answer = json.loads(self.answers.readline() or '{"error": "the connection was closed"}')
            self.answered += 1
            if not answer.get("ok"): raise OSError(answer.get("error"))

def of_session(session): return session.info.setdefault("ksync", Changes())
def announce_session(target):
    def changed(session, record, *id_and_payload):
        if hasattr(record, "__ksync_topic__"): of_session(session).add([describe(record, *id_and_payload)])
    def modified(session): return {inspect(record) for record in session.dirty if session.is_modified(record)}
    def before_flush(session, *_): of_session(session).updating = modified(session)
    def after_flush(session, _):  # by now it is not seen where a value was one that the database computes
        for state in of_session(session).updating | modified(session):
            now = tuple(state.mapper.primary_key_from_instance(state.obj()))
            for id in {state.identity, now}:  # both, where the key has changed; the record knows only the new one
                changed(session, state.obj(), id, None if id == now else {"id": plain(id)})
    def before_commit(session):  # its flush comes after this
        of_session(session).is_committing = True
        of_session(session).settle()
    def after_flush_postexec(session, _):
        if of_session(session).is_committing: of_session(session).settle()
    def after_commit(session):
        of_session(session).is_committing = False
        if not session.in_nested_transaction(): of_session(session).end("instant")  # else it was only a savepoint
    def after_transaction_end(session, transaction):
        if transaction.parent is None: session.info.pop("ksync", Changes()).end("forget")
    for hears in before_flush, after_flush, after_flush_postexec, before_commit, after_commit, after_transaction_end:
        event.listen(target, hears.__name__, hears)
    for name in "pending_to_persistent", "persistent_to_deleted": event.listen(target, name, changed)  # orphans, too

def announce_model(model):
    save_base = model.save_base
    @functools.wraps(save_base)
    def save_in_transaction(self, *args, **options):  # by itself, in autocommit mode, post_save comes after the commit
        using = options.get("using") or router.db_for_write(type(self), instance=self)
        with contextlib.nullcontext() if connections[using].in_atomic_block else transaction.atomic(using):
            return save_base(self, *args, **options)
    model.save_base = save_in_transaction
    listen(model)
    models.signals.class_prepared.connect(lambda sender, **_: issubclass(sender, model) and listen(sender), weak=False)

def listen(model):  # and to its proxies and children: Django tells of their records by their own names only
    if not model._meta.abstract:
        for signal in models.signals.post_save, models.signals.post_delete: signal.connect(model_changed, sender=model)
        for field in model._meta.get_fields(include_hidden=True):
            if field.many_to_many:
                through = (field if field.auto_created else field.remote_field).through
                models.signals.m2m_changed.connect(model_changed, sender=through)
    for kind in model.__subclasses__(): listen(kind)

def model_changed(instance, using, action="post_save", model=None, pk_set=None, **_):
    if not action.startswith("post_"): return
    with transaction.mark_for_rollback_on_error(using):  # even if somebody catches the error
        if hasattr(instance, "__ksync_topic__"): add_in(using, [describe(instance)])
        if pk_set and hasattr(model, "__ksync_topic__"): add_in(using, of_keys(model, pk_set, using))

def of_keys(model, keys, using):
    if not hasattr(model, "ksync_payload"): return [describe(model, key) for key in keys]
    return [describe(record) for record in model._base_manager.using(using).filter(pk__in=keys)]

def of_connection(connection):  # its hooks hold them: on rollback Django drops these
    return next((hook for _, hook, *_ in connection.run_on_commit if isinstance(hook, Changes)), None) or Changes()

def add_in(using, messages):
    changes = of_connection(connections[using])
    changes.add(messages)
    transaction.on_commit(changes, using)

def commit_announced(connection, commit=models and BaseDatabaseWrapper.commit):  # Django has no hook before it
    changes = of_connection(connection)
    try: changes.settle()
    except Error:
        connection.rollback()
        raise
    commit(connection)
    changes()  # before the hooks of others: they end at the first that raises
if models: BaseDatabaseWrapper.commit = commit_announced

class QuerySet(models.QuerySet if models else object):
    """Sees what sends no signals (delete() does), and with Meta.base_manager_name = "objects" also related.add()."""
    def update(self, **values):
        fields = {self.model._meta.get_field(name) for name in values}
        if any(field.primary_key for field in fields) or fields & {*getattr(self.model._meta, "pk_fields", [])}:
            raise Error("update() cannot tell the old keys: use SQL within ksync.bulk() of a ksync.message() for each")
        self._for_write, self._result_cache = True, None
        with transaction.atomic(self.db, savepoint=False):
            keys = list(self.values_list("pk", flat=True))  # only these, even if more come to match in between
            count = super(QuerySet, self.filter(pk__in=keys)).update(**values)
            add_in(self.db, of_keys(self.model, keys, self.db))
        return count

    def bulk_create(self, *args, **options):
        self._for_write = True
        with transaction.atomic(self.db, savepoint=False):
            created = super().bulk_create(*args, **options)
            add_in(self.db, [describe(record) for record in created])
        return created

def announce(*targets):
    for target in targets: announce_model(target) if hasattr(target, "_meta") else announce_session(target)

@contextlib.contextmanager
def bulk(changed, session=None, using=None):
    """Gives the records as a list: the block has to be about these. Delay messages go before it, instant ones after
    the commit of the session or Django database, by default that of the records; if none is open, after the block."""
    changed, op = list(changed), "forget"
    messages = [record if isinstance(record, dict) else describe(record) for record in changed]
    for record in changed[:1]:
        session = session or getattr(inspect(record, raiseerr=False), "session", None)
        using = using or getattr(getattr(record, "_state", None), "db", None)
    atomic = models and settings.configured and [each.alias for each in connections.all(True) if each.in_atomic_block]
    if atomic and not session:  # of a message none is known, of a record it may be a replica
        add_in(using if using in atomic else atomic[0], messages)
        yield changed
        return
    changes = of_session(session) if session else Changes()
    changes.add(messages)
    changes.settle()
    try:
        yield changed
        op = "instant"
    finally:
        if not session or not session.in_transaction(): changes.end(op)

def work(function):
    """Calls it with each batch's records. It returns nothing, or what failed: [{"offset": 42, "error": "no such thing",
    "permanent": True}]. A ConnectionError or TimeoutError: the store is away; any other exception fails the batch."""
    lines, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what is printed goes to the log: stdout is for answers alone
    say = lambda **said: print(json.dumps(said, default=str), file=answers)
    batch, records = None, []
    for told in map(json.loads, lines):
        kind = told.get("type")  # of our records none has a type
        if kind is None: records.append(told)
        elif kind == "hello": say(type="ready")
        elif kind == "batch": batch, records = told["id"], []
        elif kind == "cancel" and batch == told["id"]: batch = None  # another process has it now
        elif kind == "shutdown": break
        elif kind == "end" and batch:
            try: answer = {"type": "done", "failed": list(function(records) or [])}
            except Failed as failed: answer = {"type": "done", "failed": list(failed.args[0])}
            except (ConnectionError, TimeoutError) as away:
                log.warning("the batch comes again in 5 s: %s", away)
                answer = {"type": "backoff", "ms": 5000}
            batch = say(**answer, id=batch)  # and then there is none

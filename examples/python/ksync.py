"""ksync for SQLAlchemy 2 and Django 4.2 or later: announces changes through ksync-stream --serve, works on them.
    class Product(Base):         # of either; def ksync_payload(self): what handlers get, if not {"id": 7}
        __ksync_topic__ = "products"
    ksync.announce(Session)      # SQLAlchemy: Session or a sessionmaker
    ksync.announce(Product)      # Django: in AppConfig.ready(); and in the model objects = ksync.QuerySet.as_manager()
    with ksync.bulk(products):   # around what neither tells, see below
    ksync.work(function)         # all that a program for ksync-consume --worker has to do
KSYNC_SOCKET (/run/ksync/stream.sock), KSYNC_TIMEOUT (5, in seconds); KSYNC_ON_ERROR=log: what cannot be announced is
committed all the same; KSYNC_DISABLED=1: nothing is sent. For tests: ksync.sent = [] collects, ksync.sent.clear().
Neither tells of SQL. SQLAlchemy tells nothing of session.execute(update(..)), query.update() and session.bulk_*();
Django nothing of SET_NULL, of _raw_delete(), of another manager's update() and bulk_create(), and, where a relation of
many to many is cleared or one of its records deleted, of the records on the other side."""
import contextlib, functools, json, logging, os, socket, weakref
try: from sqlalchemy import event, inspect
except ImportError: inspect = lambda record, **_: None
try: from django.db import connections, models, router, transaction
except ImportError: models = None

log, sent = logging.getLogger("ksync"), None
to_json = functools.partial(json.dumps, default=str, ensure_ascii=False, separators=(",", ":"))

class Error(Exception): """A change cannot be announced, so it is not committed."""
class Failed(Exception): """Raised with its list by the function of a worker, once all others are done, to return it."""

def message(topic, id, payload=None):  # for bulk(), where there is no object; the id of several columns is a list
    if id is None: raise Error(f"cannot announce a record of {topic}: the database has not told its primary key")
    key = id if isinstance(id, str) else to_json(id).strip('"')
    return {"topic": topic, "key": key, "payload": {"id": id} if payload is None else payload}

def describe(record, id=None):
    if id is None: id = record.pk if hasattr(record, "_meta") else inspect(record).identity
    if isinstance(id, tuple) and len(id) == 1: id = id[0]
    return message(record.__ksync_topic__, id, record.ksync_payload() if hasattr(record, "ksync_payload") else None)

class Changes:
    """Those of one transaction, then of the next. While there are some they have a connection of their own: no thread
    and no forked process shares it, and if nobody tells the end, the side process forgets them with it."""
    link = None

    def __init__(self): self.reset()
    def __del__(self): self.end("forget")

    def reset(self):
        self.hang_up()
        self.messages, self.pid, self.is_committing, self.is_given_up = {}, os.getpid(), False, False
        self.failure = None  # else the side process knows nothing of them

    def add(self, messages):  # and go on: settle() waits for the answers
        if not messages or os.environ.get("KSYNC_DISABLED") == "1": return
        self.messages.update({(message["topic"], message["key"]): message for message in messages})
        if not self.failure: self.failure = self.attempt("delay", messages, waits=False)  # else settle() sends all

    def settle(self, op="delay"):  # when Kafka has all; what the side process or the connection has lost goes once more
        if not self.messages or (op == "delay" and self.is_given_up): return
        for again in False, True:
            if isinstance(self.failure, socket.timeout) and (again or op == "delay"): break  # once is long enough
            self.failure = self.attempt(op, list(self.messages.values()) if self.failure else [])
            if not self.failure: return
        text = f"cannot send {op} messages through {self.path}: {self.failure}"
        if op == "delay" and os.environ.get("KSYNC_ON_ERROR") != "log":
            failure, self.failure = self.failure, True  # whoever tries to commit again has it tried again
            raise Error(f"{text}; nothing is committed") from failure
        self.is_given_up = True
        log.error(text)

    def end(self, op):
        if op == "instant":
            self.settle(op)  # it is committed; if this fails, the delay messages bring the records up
        elif self.messages and not self.failure and self.pid == os.getpid():
            with contextlib.suppress(OSError, ValueError):
                self.ask(op, [])  # forget
                if self.link:  # to the end, as half a line may be among what was sent; with answers unread it would warn of us
                    self.link.shutdown(socket.SHUT_WR)
                    self.answers.read()
        self.reset()

    def attempt(self, op, messages, waits=True):  # returns what it has failed by
        try:
            if messages or op == "instant": self.ask(op, messages)
            if waits: self.read()
        except (OSError, ValueError) as error:
            self.hang_up()
            return error.with_traceback(None)  # its frames would hold these changes beyond their end

    def hang_up(self):
        if self.link:
            self.answers.close()
            self.link.close()
        self.link, self.asked, self.answered = None, 0, 0

    def ask(self, op, messages):
        if sent is not None:
            return sent.extend({"op": op, **message} for message in messages or self.messages.values())
        if not self.link:
            self.tx, self.path = os.urandom(8).hex().encode(), os.environ.get("KSYNC_SOCKET", "/run/ksync/stream.sock")
            self.link = socket.socket(socket.AF_UNIX)
            self.answers = self.link.makefile("rb")
            self.link.settimeout(float(os.environ.get("KSYNC_TIMEOUT", "5")))
            self.link.connect(self.path)
        texts = [to_json(message).encode() for message in messages]
        count = -(-8_000_000 // max([32_000, *map(len, texts)]))  # 250 or fewer: a request may have 16 MiB
        for at in range(0, len(texts) or 1, count):
            self.read(99)  # or the side process would stop to read requests
            self.asked += 1
            request = self.asked, self.tx, op.encode(), b",".join(texts[at:at + count])
            self.link.sendall(b'{"id":%d,"tx":"%s","op":"%s","messages":[%s]}\n' % request)

    def read(self, missing=0):  # until no more answers than these are missing
        while self.asked - self.answered > missing:
            answer = json.loads(self.answers.readline() or '{"error": "the connection was closed"}')
            self.answered += 1
            if not answer.get("ok"): raise OSError(answer.get("error"))

def of_session(session):
    return session.info.setdefault("ksync", Changes())

def announce_session(target):
    def changed(session, record, id=None):
        if hasattr(record, "__ksync_topic__"): of_session(session).add([describe(record, id)])
    def modified(session):
        return {inspect(record) for record in session.dirty if session.is_modified(record)}
    def before_flush(session, *_):
        of_session(session).updating = modified(session)
    def after_flush(session, _):  # by now it is not seen where a value was one that the database computes
        for state in of_session(session).updating | modified(session):
            # Both, where the key itself has changed.
            for id in {state.identity, tuple(state.mapper.primary_key_from_instance(state.obj()))}:
                changed(session, state.obj(), id)
    def before_commit(session):  # its flush comes after this
        of_session(session).is_committing = True
        of_session(session).settle()
    def after_flush_postexec(session, _):
        if of_session(session).is_committing: of_session(session).settle()
    def after_commit(session):
        of_session(session).is_committing = False
        if not session.in_nested_transaction():  # else it was only a savepoint
            of_session(session).end("instant")
    def after_transaction_end(session, transaction):
        if transaction.parent is None: of_session(session).end("forget")  # nothing, if it was committed

    for hears in before_flush, after_flush, after_flush_postexec, before_commit, after_commit, after_transaction_end:
        event.listen(target, hears.__name__, hears)
    for name in "pending_to_persistent", "persistent_to_deleted":  # orphans are told, too
        event.listen(target, name, changed)

def announce_model(model):
    save_base = model.save_base

    @functools.wraps(save_base)
    def save_in_transaction(self, *args, **options):  # by itself, in autocommit mode, post_save comes after the commit
        using = options.get("using") or router.db_for_write(type(self), instance=self)
        with contextlib.nullcontext() if connections[using].in_atomic_block else transaction.atomic(using):
            return save_base(self, *args, **options)

    model.save_base = save_in_transaction
    listen(model)
    later = models.signals.class_prepared
    later.connect(lambda sender, **_: issubclass(sender, model) and listen(sender), weak=False)

def listen(model):  # and to its proxies and children: Django tells of their records by their own names only
    if not model._meta.abstract:
        for signal in models.signals.post_save, models.signals.post_delete: signal.connect(model_changed, sender=model)
        for field in model._meta.get_fields(include_hidden=True):
            if field.many_to_many:
                relation = field if field.auto_created else field.remote_field
                models.signals.m2m_changed.connect(model_changed, sender=relation.through)
    for kind in model.__subclasses__(): listen(kind)

def model_changed(instance, using, action="post_save", model=None, pk_set=None, **_):
    if not action.startswith("post_"): return
    messages = [describe(instance)] if hasattr(instance, "__ksync_topic__") else []
    if pk_set and hasattr(model, "__ksync_topic__"):  # clear() does not tell whom it parts
        messages += of_keys(model, pk_set, using)
    add_in(using, messages)

def of_keys(model, keys, using):
    if not hasattr(model, "ksync_payload"): return [describe(model, key) for key in keys]
    return [describe(record) for record in model._base_manager.using(using).filter(pk__in=keys)]

def add_in(using, messages):  # and wait: Django has no hook before the commit, and so it is right whoever commits
    connection = connections[using]
    changes = getattr(connection, "ksync", Changes)() or Changes()
    connection.ksync = weakref.ref(changes)  # its hooks hold it: on rollback Django drops them, and it forgets
    with transaction.mark_for_rollback_on_error(using):  # even if somebody catches the error
        try:
            changes.add(messages)
            changes.settle()
        except Error:
            # Django keeps the error with all of its frames: nothing later may find these. If it was a savepoint, what
            # commits around it still has hooks, and sends all along.
            del connection.ksync
            raise
    transaction.on_commit(functools.partial(changes.end, "instant"), using)

class QuerySet(models.QuerySet if models else object):
    """Sees what sends no signals (delete() does), and with Meta.base_manager_name = "objects" also related.add()."""
    def update(self, **values):
        parts = getattr(self.model._meta, "pk_fields", [])  # Django 5.2
        if any(field.primary_key or field in parts for field in map(self.model._meta.get_field, values)):
            raise Error("update() cannot tell both the old and the new primary keys: change them by SQL within "
                        "ksync.bulk(), with a ksync.message() for each")
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
    for target in targets:
        announce_model(target) if hasattr(target, "_meta") else announce_session(target)

@contextlib.contextmanager
def bulk(changed, session=None, using=None):
    """Gives the records as a list: the block has to be about these. Delay messages go before it, instant ones after
    the commit of the session or Django database, by default that of the records; if none is open, after the block."""
    changed, op = list(changed), "forget"
    for record in changed[:1]:
        using = using or getattr(getattr(record, "_state", None), "db", None)
        session = session or getattr(inspect(record, raiseerr=False), "session", None)
    changes = of_session(session) if session else Changes()
    changes.add([record if isinstance(record, dict) else describe(record) for record in changed])
    changes.settle()
    try:
        yield changed
        op = "instant"
    finally:
        if using:
            transaction.on_commit(functools.partial(changes.end, op), using)
        elif not session or not session.in_transaction():
            changes.end(op)

def work(function):
    """Calls it with each batch's records. It returns nothing, or what failed: [{"offset": 42, "error": "no such category",
    "permanent": True}]. A ConnectionError or TimeoutError says that the store is away; any other exception fails the batch."""
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
            try:
                say(type="done", id=batch, failed=list(function(records) or []))
            except Failed as failed:
                say(type="done", id=batch, failed=list(failed.args[0]))
            except (ConnectionError, TimeoutError) as away:
                log.warning("the batch comes again in 5 s: %s", away)
                say(type="backoff", id=batch, ms=5000)
            batch = None

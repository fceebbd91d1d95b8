"""ksync for SQLAlchemy 2 and Django 4.2 or later: announces changes through ksync-stream --serve, works on them.
    class Product(Base):         # of either; def ksync_payload(self): what handlers get, if not {"id": 7}
        __ksync_topic__ = "products"
    ksync.announce(Session)      # SQLAlchemy: Session or a sessionmaker
    ksync.announce(Product)      # Django: in AppConfig.ready(); and in the model objects = ksync.QuerySet.as_manager()
    with ksync.bulk(products):   # around what neither tells: SQL, bulk statements of a session, SET_NULL
    ksync.work(function)         # all that a program for ksync-consume --worker has to do
KSYNC_SOCKET (/run/ksync/stream.sock), KSYNC_TIMEOUT (5, in seconds); KSYNC_ON_ERROR=log: what cannot be announced is
committed all the same; KSYNC_DISABLED=1: nothing is sent. For tests: ksync.sent = [] collects, ksync.sent.clear()."""
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
    id = id[0] if isinstance(id, tuple) and len(id) == 1 else id
    return message(record.__ksync_topic__, id, record.ksync_payload() if hasattr(record, "ksync_payload") else None)

class Changes:
    """Those of one transaction, then of the next. While there are some they have a connection of their own: no thread
    and no forked process shares it, and if nobody tells the end, the side process forgets them with it."""
    def __init__(self):
        self.messages, self.socket, self.asked, self.answered, self.pid = {}, None, 0, 0, os.getpid()
        self.is_lost = self.is_committing = False

    def add(self, messages):  # and go on: settle() waits for the answers
        if messages and os.environ.get("KSYNC_DISABLED") != "1":
            self.messages.update({(message["topic"], message["key"]): message for message in messages})
            try: self.is_lost or self.ask("delay", messages)
            except (OSError, ValueError): self.hang_up()  # settle() sends all of them again

    def settle(self, op="delay"):  # when Kafka has all; what the side process or the connection has lost goes once more
        for is_last in (False, True) if self.messages else ():
            try:
                if self.is_lost or op == "instant":
                    self.ask(op, list(self.messages.values()) if self.is_lost else [])
                while self.answered < self.asked: self.read()
                self.is_lost = False
                break
            except (OSError, ValueError) as error:
                self.hang_up()
                text = f"cannot send {op} messages through {self.path}: {error}"
                if is_last and (op == "instant" or os.environ.get("KSYNC_ON_ERROR") == "log"): log.error(text)
                elif is_last: raise Error(f"{text}; nothing is committed") from error

    def end(self, op):
        if op == "instant": self.settle(op)  # it is committed; if this fails, the delay messages bring the records up
        elif self.messages and not self.is_lost and self.pid == os.getpid():
            with contextlib.suppress(OSError, ValueError):
                self.ask(op, [])  # forget
                if self.socket: self.socket.shutdown(socket.SHUT_WR) or self.answers.read()  # or it warns of us
        self.hang_up()
        self.__init__()
    __del__ = lambda self: self.end("forget")

    def hang_up(self):
        for opened in (self.answers, self.socket) if self.socket else (): opened.close()
        self.socket, self.is_lost, self.asked, self.answered = None, True, 0, 0

    def ask(self, op, messages):
        if sent is not None: return sent.extend({"op": op, **message} for message in messages or self.messages.values())
        if not self.socket:
            self.tx, self.path = os.urandom(8).hex(), os.environ.get("KSYNC_SOCKET", "/run/ksync/stream.sock")
            self.socket = socket.socket(socket.AF_UNIX)
            self.answers = self.socket.makefile("rb")
            self.socket.settimeout(float(os.environ.get("KSYNC_TIMEOUT", "5")))
            self.socket.connect(self.path)
        texts = [to_json(message).encode() for message in messages]
        count = -(-8_000_000 // max([32_000, *map(len, texts)]))  # 250 or fewer: a request may have 16 MiB
        for at in range(0, len(texts) or 1, count):
            while self.asked - self.answered >= 100: self.read()  # or the side process would stop to read requests
            self.asked += 1
            some = b",".join(texts[at:at + count])
            self.socket.sendall(f'{{"id":{self.asked},"tx":"{self.tx}","op":"{op}","messages":['.encode() + some + b"]}\n")

    def read(self):
        answer = json.loads(self.answers.readline() or '{"error": "the connection was closed"}')
        self.answered += 1
        if not answer.get("ok"): raise OSError(answer.get("error"))

of_session = lambda session: session.info.get("ksync") or session.info.setdefault("ksync", Changes())
def announce_session(target):
    def written(session, record, id=None):
        if hasattr(record, "__ksync_topic__"): of_session(session).add([describe(record, id)])
    modified = lambda session: {inspect(record) for record in session.dirty if session.is_modified(record)}
    def updating(session, *_): of_session(session).updating = modified(session)
    def updated(session, _):  # by now it is not seen where a value was one that the database computes
        for state in of_session(session).updating | modified(session):
            for id in {state.identity, tuple(state.mapper.primary_key_from_instance(state.obj()))}:
                written(session, state.obj(), id)  # both, where the key itself has changed
    def settle(session, flushed=None):
        of_session(session).is_committing |= flushed is None  # the flush of a commit comes after before_commit
        if of_session(session).is_committing: of_session(session).settle()
    def committed(session):
        of_session(session).is_committing = False
        if not session.in_nested_transaction(): of_session(session).end("instant")  # else it was only a savepoint
    def ended(session, transaction):
        if transaction.parent is None: of_session(session).end("forget")  # nothing, if it was committed
    for name, listener in {"before_flush": updating, "after_flush": updated, "after_flush_postexec": settle,
        "pending_to_persistent": written, "persistent_to_deleted": written, "before_commit": settle,  # orphans are told, too
        "after_commit": committed, "after_transaction_end": ended}.items(): event.listen(target, name, listener)

def announce_model(model):
    for signal in models.signals.post_save, models.signals.post_delete: signal.connect(written, sender=model)
    for field in model._meta.get_fields(include_hidden=True):
        if field.many_to_many:
            models.signals.m2m_changed.connect(written, sender=(field if field.auto_created else field.remote_field).through)
    save_base = model.save_base
    def save_in_transaction(self, *args, **options):  # by itself, in autocommit mode, post_save comes after the commit
        using = options.get("using") or router.db_for_write(type(self), instance=self)
        with contextlib.nullcontext() if connections[using].in_atomic_block else transaction.atomic(using):
            return save_base(self, *args, **options)
    model.save_base = functools.wraps(save_base)(save_in_transaction)
def written(instance, using, action="post_save", model=None, pk_set=None, **_):
    if action.startswith("post_"):
        messages = [describe(instance)] if hasattr(instance, "__ksync_topic__") else []
        is_told = pk_set and hasattr(model, "__ksync_topic__")  # clear() does not tell whom it parts
        add_in(using, messages + of_keys(model, pk_set, using) if is_told else messages)
def of_keys(model, keys, using):
    if not hasattr(model, "ksync_payload"): return [describe(model, key) for key in keys]
    return list(map(describe, model._base_manager.using(using).filter(pk__in=keys)))

def add_in(using, messages):  # and wait: Django has no hook before the commit, and so it is right whoever commits
    changes = (getattr(connections[using], "ksync", None) or Changes)() or Changes()
    connections[using].ksync = weakref.ref(changes)  # its hooks hold it: on rollback Django drops them, and it forgets
    with transaction.mark_for_rollback_on_error(using):  # even if somebody catches the error
        try: changes.add(messages) or changes.settle()
        except Error: connections[using].ksync = changes.end("forget"); raise  # Django keeps it, with all of its frames
    transaction.on_commit(functools.partial(changes.end, "instant"), using)
class QuerySet(models.QuerySet if models else object):
    """Sees what sends no signals (delete() does), and with Meta.base_manager_name = "objects" also related.add()."""
    def update(self, **values):
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
            add_in(self.db, list(map(describe, created)))
        return created

def announce(*targets):
    for target in targets: (announce_model if hasattr(target, "_meta") else announce_session)(target)

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
        if using: transaction.on_commit(functools.partial(changes.end, op), using)
        elif not session or not session.in_transaction(): changes.end(op)

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
            try: say(type="done", id=batch, failed=list(function(records) or []))
            except Failed as failed: say(type="done", id=batch, failed=list(failed.args[0]))
            except (ConnectionError, TimeoutError) as away:
                log.warning("the batch comes again in 5 s: %s", away)
                say(type="backoff", id=batch, ms=5000)
            batch = None

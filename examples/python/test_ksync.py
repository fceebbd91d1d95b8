"""Tests of ksync.py: python3 -m unittest test_ksync. On SQLite, or on the Postgres of DATABASE_URL (by psycopg)."""

import contextlib
import datetime
import decimal
import enum
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
import uuid
from unittest import mock
from urllib.parse import unquote, urlsplit

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import ksync  # noqa: E402

try:
    import sqlalchemy
    from sqlalchemy import orm
except ImportError:
    sqlalchemy = None
try:
    import django
    from django.conf import settings
except ImportError:
    django = None

FOLDER = tempfile.TemporaryDirectory()
DATABASE_URL = os.environ.get("DATABASE_URL")
HANG_UP, SILENT = object(), object()


class Server:
    """A side process that keeps what it is asked, and answers what `answer` returns, or for None what a real one would.

    It notes as "forget" what it forgets with a connection that is closed by the other side. The real one warns of an
    application that goes without its answers: `unread` counts them.
    """

    def __init__(self, path):
        self.asked, self.news, self.connections = [], threading.Condition(), []
        self.answer, self.unread, self.has_hung_up = lambda request: None, 0, False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                number = len(self.connections)
                threading.Thread(target=self.serve, args=(connection, number), daemon=True).start()

    def serve(self, connection, number):
        known = set()
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            for line in lines:
                try:
                    request = json.loads(line)
                except ValueError:
                    connection.sendall(b'{"id":null,"ok":false,"error":"this is not a request"}\n')
                    continue
                said = self.answer(request) or self.usual(request, known)
                self.note(request, number)
                if said is HANG_UP:
                    return
                try:
                    if said is not SILENT:
                        connection.sendall(json.dumps({"id": request["id"], **said}).encode() + b"\n")
                except OSError:
                    self.unread += 1  # but more may have been asked
            if known and not self.has_hung_up:
                self.note({"op": "forget", "messages": []}, number)

    def note(self, request, number):
        with self.news:
            self.asked.append({**request, "connection": number})
            self.news.notify_all()

    @staticmethod
    def usual(request, known):
        op, tx, messages = request["op"], request["tx"], request.get("messages", [])
        if op == "delay" and not messages:
            return {"ok": False, "error": "a delay request needs messages"}
        if op == "instant" and not messages and tx not in known:
            return {"ok": False, "error": f"tx {tx} is not known here, or not any more; send its messages along"}
        known.add(tx) if op == "delay" else known.discard(tx)
        return {"ok": True}

    def told(self, count):
        """What it was asked, once there is so much of it."""
        with self.news:
            self.news.wait_for(lambda: len(self.asked) >= count, 5)
            asked = list(self.asked)
        names = [[f"{message['topic']}/{message['key']}" for message in request["messages"]] for request in asked]
        return [" ".join([request["op"], *those]) for request, those in zip(asked, names)]

    def hang_up(self):
        self.has_hung_up = True
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.hang_up()


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder, self.path = folder.name, os.path.join(folder.name, "ksync")
        environment = mock.patch.dict(os.environ, {"KSYNC_SOCKET": self.path, "KSYNC_ANSWER_TIMEOUT": "5"})
        environment.start()
        self.addCleanup(environment.stop)
        for name in "KSYNC_ON_ERROR", "KSYNC_DISABLED":
            os.environ.pop(name, None)
        self.addCleanup(setattr, ksync, "sent", None)
        self.serve()

    def serve(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.server = Server(self.path)
        self.addCleanup(self.server.stop)

    def assert_told(self, *expected):
        self.assertEqual(self.server.told(len(expected)), list(expected))

    @contextlib.contextmanager
    def clock(self):
        """Gives what lets seconds go by without any wait."""
        clock, passed = time.monotonic, []
        with mock.patch("time.monotonic", lambda: clock() + sum(passed)):
            yield passed.append

    def watch(self, count):
        """How many records another connection sees at each request."""
        seen = []
        self.server.answer = lambda request: seen.append((request["op"], count()))
        return seen


class ProtocolTest(Case):
    def change(self, *ids):
        changes = ksync.Changes()
        changes.add([ksync.message("products", id) for id in ids])
        return changes

    def test_what_is_committed_is_announced_before_and_after(self):
        changes = self.change(1)
        changes.add([ksync.message("orders", "a"), ksync.message("products", 2)])
        changes.settle()
        self.assert_told("delay products/1", "delay orders/a products/2")
        changes.end("instant")
        self.assert_told("delay products/1", "delay orders/a products/2", "instant")
        self.assertEqual(len({request["connection"] for request in self.server.asked}), 1)
        self.assertEqual([request["id"] for request in self.server.asked], [1, 2, 3])
        self.assertEqual(self.server.asked[0]["messages"], [{"topic": "products", "key": "1", "payload": {"id": 1}}])
        changes.end("instant")
        changes.add([ksync.message("products", 3)])
        changes.settle()
        self.assert_told("delay products/1", "delay orders/a products/2", "instant", "delay products/3")
        self.assertNotEqual(self.server.asked[0]["connection"], self.server.asked[3]["connection"])

    def test_what_is_rolled_back_is_forgotten_and_so_is_what_nobody_tells_the_end_of(self):
        self.change(1).end("forget")
        self.assert_told("delay products/1", "forget")
        changes = self.change(2)
        changes.settle()
        del changes
        self.assert_told("delay products/1", "forget", "delay products/2", "forget")
        self.assertEqual(self.server.unread, 0)

    def test_a_request_that_was_cut_short_makes_nobody_wait_for_its_answer(self):
        changes = self.change(1)
        changes.settle()
        changes.link.sendall(b'{"id":2,')  # and then came an exception that is none of ours
        changes.asked += 1
        begun = time.monotonic()
        changes.end("forget")
        self.assertLess(time.monotonic() - begun, 4)

    def test_an_answer_is_not_waited_for_before_the_commit(self):
        release, waited = threading.Event(), []
        self.server.answer = lambda request: waited.append(release.wait(4))
        changes = self.change(1)
        changes.add([ksync.message("products", 2)])
        release.set()
        changes.settle()
        self.assert_told("delay products/1", "delay products/2")
        self.assertEqual(waited, [True, True])

    def test_a_connection_that_broke_is_made_anew_and_told_all(self):
        answers = [HANG_UP]
        self.server.answer = lambda request: answers.pop() if answers else None
        changes = self.change(1, 2)
        changes.settle()
        self.assert_told("delay products/1 products/2", "delay products/1 products/2")
        self.assertEqual([request["connection"] for request in self.server.asked], [1, 2])
        self.server.hang_up()
        changes.end("instant")
        self.assert_told("delay products/1 products/2", "delay products/1 products/2", "instant products/1 products/2")

    def test_a_side_process_that_was_started_anew_gets_all_messages_with_the_instant_request(self):
        changes = self.change(1)
        changes.settle()
        self.server.stop()
        self.serve()
        changes.end("instant")
        self.assert_told("instant products/1")

    def test_what_the_side_process_does_not_know_any_more_is_sent_along(self):
        forgot = {"ok": False, "error": "tx is not known here, or not any more; send its messages along"}
        self.server.answer = lambda request: forgot if request["op"] == "instant" and not request["messages"] else None
        changes = self.change(1)
        changes.settle()
        changes.end("instant")
        told = [each for each in self.server.told(4) if each != "forget"]  # as it does with the first connection
        self.assertEqual(told, ["delay products/1", "instant", "instant products/1"])

    def test_what_was_interrupted_is_sent_before_the_commit(self):
        changes = self.change(1)
        with mock.patch.object(ksync.Changes, "read", side_effect=KeyboardInterrupt):
            with contextlib.suppress(KeyboardInterrupt):
                changes.add([ksync.message("products", 2)])
        changes.settle()
        self.assertEqual(self.server.told(2)[-1], "delay products/1 products/2")
        changes.end("instant")
        self.assertEqual(self.server.told(3)[-1], "instant")

    def test_a_rollback_does_not_wait_for_kafka(self):
        self.server.answer = lambda request: request["op"] == "delay" and time.sleep(3) or None
        changes = self.change(1)
        begun = time.monotonic()
        changes.end("forget")
        self.assertLess(time.monotonic() - begun, 2)

    def test_what_cannot_be_announced_is_not_committed(self):
        self.server.answer = lambda request: {"ok": False, "error": "Kafka is away for 3.0 s"}
        with self.assertRaisesRegex(ksync.Error, f"through {self.path}: Kafka is away for 3.0 s; nothing is committed"):
            self.change(1).settle()
        self.server.stop()
        with self.assertRaisesRegex(ksync.Error, f"cannot send delay messages through {self.path}: "):
            self.change(2).settle()

    def test_a_second_try_to_commit_needs_the_answers_as_well(self):
        self.server.answer = lambda request: {"ok": False, "error": "Kafka is away"}
        changes = self.change(1)
        for _ in range(2):
            with self.assertRaises(ksync.Error):
                changes.settle()
        self.server.answer = lambda request: None
        changes.settle()
        changes.end("instant")
        self.assertEqual(self.server.told(5)[-2:], ["delay products/1", "instant"])

    def test_no_answer_in_time_is_none(self):
        os.environ["KSYNC_ANSWER_TIMEOUT"] = "0.2"
        self.server.answer = lambda request: SILENT
        with self.assertRaisesRegex(ksync.Error, "timed out"):
            self.change(1).settle()

    def test_what_does_not_answer_is_waited_for_once(self):
        os.environ["KSYNC_ANSWER_TIMEOUT"] = "0.3"
        self.server.answer = lambda request: SILENT
        changes = self.change(1)
        with self.assertRaises(ksync.Error):
            changes.settle()
        self.assertEqual(len(self.server.connections), 1)
        os.environ["KSYNC_ON_ERROR"] = "log"
        changes = self.change(2)
        with self.assertLogs("ksync", "ERROR") as logs:
            changes.settle()
            for id in 3, 4:
                changes.add([ksync.message("products", id)])
                changes.settle()
        self.assertEqual((len(logs.output), len(self.server.connections)), (1, 2))
        self.server.answer = lambda request: None
        changes.end("instant")
        self.assertEqual(self.server.told(3)[-1], "instant products/2 products/3 products/4")
        changes.add([ksync.message("products", 5)])
        changes.settle()
        self.assertEqual(self.server.told(4)[-1], "delay products/5")

    def test_what_takes_no_request_is_waited_for_once(self):
        os.environ["KSYNC_ANSWER_TIMEOUT"] = "0.3"
        self.server.answer = lambda request: SILENT
        changes = ksync.Changes()
        for id in range(102):  # with 100 answers missing it reads one
            changes.add([ksync.message("products", id)])
        with self.assertRaisesRegex(ksync.Error, "timed out"):
            changes.settle()
        self.assertEqual(len(self.server.connections), 1)

    def test_it_goes_on_with_a_log_line_where_that_is_wanted(self):
        os.environ["KSYNC_ON_ERROR"] = "log"
        refused = {"ok": False, "error": "Kafka is away"}
        self.server.answer = lambda request: refused if request["op"] == "delay" else None
        changes = self.change(1)
        with self.assertLogs("ksync", "ERROR") as logs:
            changes.settle()
        self.assertIn("cannot send delay messages", logs.output[0])
        changes.end("instant")
        self.assertEqual(self.server.told(3)[-1], "instant products/1")

    def test_after_the_commit_a_failure_is_only_logged(self):
        changes = self.change(1)
        changes.settle()
        self.server.stop()
        with self.assertLogs("ksync", "ERROR") as logs:
            changes.end("instant")
        self.assertIn("cannot send instant messages", logs.output[0])
        self.assertEqual(len(logs.output), 1)

    def test_disabled_it_sends_nothing(self):
        os.environ["KSYNC_DISABLED"] = "1"
        self.server.stop()
        changes = self.change(1)
        changes.settle()
        changes.end("instant")
        self.assert_told()

    def test_a_test_can_see_what_would_be_sent(self):
        self.server.stop()
        ksync.sent = []
        changes = self.change(1)
        changes.settle()
        delay = {"op": "delay", "topic": "products", "key": "1", "payload": {"id": 1}}
        self.assertEqual(ksync.sent, [delay])
        ksync.sent.clear()
        changes.end("instant")
        self.assertEqual(ksync.sent, [{**delay, "op": "instant"}])

    def test_keys_are_the_text_of_the_primary_key(self):
        some = uuid.uuid4()
        day, number = datetime.date(2020, 1, 2), decimal.Decimal(7)
        for id, key, payload in [
            (7, "7", 7), (0, "0", 0), ("a\"b", "a\"b", "a\"b"), ("7", "7", "7"), ([1, "é"], '[1,"é"]', [1, "é"]),
            (2**64, str(2**64), 2**64), (some, str(some), str(some)), ((1, some), f'[1,"{some}"]', [1, str(some)]),
            # As ksync-stream writes them.
            (number, "7", 7), ([number, 1], "[7,1]", [7, 1]), ([day, 1], '["2020-01-02",1]', ["2020-01-02", 1]),
            (b"\x01\xff", "\\x01ff", "\\x01ff"), (memoryview(b"a"), "\\x61", "\\x61"),
        ]:
            message = ksync.message("products", id)
            self.assertEqual((message["key"], message["payload"]), (key, {"id": payload}))
        self.assertEqual(ksync.message("products", 7, {"a": 1})["payload"], {"a": 1})
        for id in [None, [1, None], enum.Enum("Currency", "EUR").EUR, object(), {}, decimal.Decimal("7.50")]:
            with self.assertRaisesRegex(ksync.Error, "cannot announce a record with the primary key "):
                ksync.message("products", id)
        changes = self.change(some)
        changes.settle()
        self.assertEqual(self.server.asked[0]["messages"][0]["payload"], {"id": str(some)})

    def test_many_requests_do_not_block_each_other(self):
        changes = ksync.Changes()
        for id in range(5000):
            changes.add([ksync.message("products", id)])
        changes.settle()
        self.assertEqual(self.server.told(5000)[-1], "delay products/4999")

    def test_no_request_is_longer_than_the_16_mib_that_ksync_stream_takes(self):
        with ksync.bulk([ksync.message("products", id, {"text": "é" * 300_000}) for id in range(30)]):
            pass
        asked = self.server.asked
        self.assertLess(max(len(request["messages"]) for request in asked), (16 << 20) / 600_000)
        keys = [message["key"] for request in asked for message in request["messages"]]
        self.assertEqual(keys, [str(id) for id in range(30)])

    def test_many_records_are_told_in_several_requests(self):
        with ksync.bulk([ksync.message("products", id) for id in range(1001)]):
            pass
        self.assertEqual([len(request["messages"]) for request in self.server.asked], [250, 250, 250, 250, 1, 0])

    def test_a_forked_process_does_not_meddle(self):
        changes = self.change(1)
        changes.settle()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                changes.end("forget")
                own = self.change(2)
                own.settle()
                own.end("instant")
                status = 0
            finally:
                os._exit(status)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        changes.end("instant")
        self.assert_told("delay products/1", "delay products/2", "instant", "instant")
        self.assertEqual([request["connection"] for request in self.server.asked], [1, 2, 2, 1])

    def test_bulk_announces_around_the_block(self):
        with ksync.bulk([ksync.message("products", id) for id in (1, 2)]) as changed:
            self.assertEqual([message["key"] for message in changed], ["1", "2"])
            self.assert_told("delay products/1 products/2")
        self.assert_told("delay products/1 products/2", "instant")
        with contextlib.suppress(ZeroDivisionError), ksync.bulk([ksync.message("products", 3)]):
            1 / 0
        self.assert_told("delay products/1 products/2", "instant", "delay products/3", "forget")

    def test_it_needs_neither_of_the_frameworks(self):
        for absent in [["django"], ["sqlalchemy"], ["django", "sqlalchemy"]]:
            program = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:])); import ksync\n" \
                      "with ksync.bulk([ksync.message('products', 1)]): pass"
            subprocess.run([sys.executable, "-c", program, *absent], cwd=HERE, check=True, timeout=60)
        self.assert_told(*3 * ["delay products/1", "instant"])


class WorkerTest(unittest.TestCase):
    PROGRAM = """
import os, ksync

def work(records):
    print("noise", [record["key"] for record in records])
    os.system("echo more noise; cat")
    if records[0]["key"] == "away":
        raise ConnectionError("refused")
    if records[0]["key"] == "raises":
        raise ksync.Failed([{"offset": records[0]["offset"], "error": "raised"}])
    if records[0]["key"] == "breaks":
        raise KeyError("nobody expects it")
    bad = [record for record in records if record["key"] is None]
    return [{"offset": record["offset"], "error": "no id", "permanent": True} for record in bad]

ksync.work(work)
"""

    def run_worker(self, *lines):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        program = [sys.executable, "-c", self.PROGRAM]
        worker = subprocess.run(program, input=text, capture_output=True, text=True, cwd=HERE, timeout=60)
        return worker, [json.loads(line) for line in worker.stdout.splitlines()]

    @staticmethod
    def batch(id, *keys, end="end"):
        record = {"topic": "t", "partition": 0, "payload": None}
        records = [{**record, "offset": offset, "key": key} for offset, key in enumerate(keys)]
        return [{"type": "batch", "id": id, "count": len(keys)}, *records, {"type": end, "id": id}]

    def test_it_answers_each_batch_and_nothing_that_is_printed_is_an_answer(self):
        worker, answers = self.run_worker(
            {"type": "hello", "ksync": 1, "name": "n"}, *self.batch("b1", "1", None), {"type": "unknown"},
            *self.batch("b2", "2", end="cancel"), *self.batch("b3", "raises", "3"), *self.batch("b4", "away"),
            *self.batch("b5", "5"), {"type": "shutdown"}, *self.batch("b6", "6"),
        )
        self.assertEqual(answers, [
            {"type": "ready"},
            {"type": "done", "id": "b1", "failed": [{"offset": 1, "error": "no id", "permanent": True}]},
            {"type": "done", "id": "b3", "failed": [{"offset": 0, "error": "raised"}]},
            {"type": "backoff", "id": "b4", "ms": 5000},
            {"type": "done", "id": "b5", "failed": []},
        ])
        self.assertEqual(worker.returncode, 0)
        self.assertIn("more noise", worker.stderr)
        self.assertIn("noise ['1', None]", worker.stderr)
        self.assertNotIn("noise ['2']", worker.stderr)

    def test_an_unexpected_exception_ends_it_without_an_answer(self):
        worker, answers = self.run_worker({"type": "hello"}, *self.batch("b1", "breaks"), *self.batch("b2", "1"))
        self.assertEqual((answers, worker.returncode), ([{"type": "ready"}], 1))
        self.assertIn("nobody expects it", worker.stderr)


if sqlalchemy:
    class Base(orm.DeclarativeBase):
        pass

    class Product(Base):
        __tablename__, __ksync_topic__ = "ksync_products", "products"
        id = orm.mapped_column(sqlalchemy.Integer, primary_key=True)
        name = orm.mapped_column(sqlalchemy.String(50))
        parts = orm.relationship("Part", cascade="all, delete-orphan")

    class Part(Base):
        __tablename__, __ksync_topic__ = "ksync_parts", "parts"
        id = orm.mapped_column(sqlalchemy.Integer, primary_key=True)
        product_id = orm.mapped_column(sqlalchemy.ForeignKey("ksync_products.id"))

    class Price(Base):
        __tablename__, __ksync_topic__ = "ksync_prices", "prices"
        product = orm.mapped_column(sqlalchemy.Integer, primary_key=True, autoincrement=False)
        currency = orm.mapped_column(sqlalchemy.String(3), primary_key=True)
        cents = orm.mapped_column(sqlalchemy.Integer)

        def ksync_payload(self):
            return {"product": self.product, "cents": self.cents}

    class Secret(Base):
        __tablename__ = "ksync_secrets"
        id = orm.mapped_column(sqlalchemy.Integer, primary_key=True)
        name = orm.mapped_column(sqlalchemy.String(50))


@unittest.skipUnless(sqlalchemy, "SQLAlchemy is not installed")
class SqlAlchemyTest(Case):
    def setUp(self):
        super().setUp()
        url = f"sqlite:///{self.folder}/database"
        if DATABASE_URL:
            url = f"postgresql+psycopg://{DATABASE_URL.split('://', 1)[1]}"
        self.engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
        if not DATABASE_URL:  # what the documentation says of savepoints on SQLite
            @sqlalchemy.event.listens_for(self.engine, "connect")
            def connect(connection, _):
                connection.isolation_level = None

            @sqlalchemy.event.listens_for(self.engine, "begin")
            def begin(connection):
                connection.exec_driver_sql("BEGIN")
        Base.metadata.drop_all(self.engine)
        Base.metadata.create_all(self.engine)
        self.addCleanup(Base.metadata.drop_all, self.engine)
        self.Session = orm.sessionmaker(self.engine)
        ksync.announce(self.Session)

    def count(self, model=None):
        with self.engine.connect() as connection:
            table = (model or Product).__table__
            return connection.scalar(sqlalchemy.select(sqlalchemy.func.count()).select_from(table))

    def given(self, *records):
        with self.Session() as session:
            session.add_all(records)
            session.commit()
        self.server.asked.clear()

    def test_a_new_record_is_announced_before_the_commit_that_flushes_it_and_after(self):
        seen = self.watch(self.count)
        with self.Session() as session:
            session.add(Product(name="a"))
            session.commit()
        self.assert_told("delay products/1", "instant")
        self.assertEqual(seen, [("delay", 0), ("instant", 1)])

    def test_what_was_flushed_before_is_of_the_same_transaction(self):
        with self.Session.begin() as session:
            session.add(Product(name="a"))
            session.flush()
            session.add(Product(name="b"))
        self.assert_told("delay products/1", "delay products/2", "instant")
        self.assertEqual(len({request["connection"] for request in self.server.asked}), 1)

    def test_what_was_sent_long_ago_is_sent_again_before_the_commit(self):
        for seconds, again in (29, []), (31, ["delay products/1 products/2"]):
            with self.clock() as wait, self.Session() as session:
                for id in 1, 2:
                    session.add(Product(id=id, name="a"))
                    session.flush()
                self.server.told(2)
                seen = self.watch(self.count)
                wait(seconds)
                session.commit()
            self.assert_told("delay products/1", "delay products/2", *again, "instant")
            self.assertEqual(seen, [*(("delay", 0) for _ in again), ("instant", 2)])
            with self.engine.begin() as connection:
                connection.execute(sqlalchemy.delete(Product))
            self.serve()

    def test_a_side_process_that_was_started_anew_in_a_long_transaction_is_told_all_before_the_commit(self):
        with self.clock() as wait, self.Session() as session:
            session.add(Product(id=1, name="a"))
            session.flush()
            self.server.told(1)
            self.server.stop()
            wait(31)
            self.assertRaises(ksync.Error, session.commit)
        self.assertEqual(self.count(), 0)
        self.serve()
        with self.clock() as wait, self.Session() as session:
            session.add(Product(id=2, name="a"))
            session.flush()
            self.server.told(1)
            self.server.stop()
            self.serve()
            seen = self.watch(self.count)
            wait(31)
            session.commit()
        self.assert_told("delay products/2", "instant")
        self.assertEqual(seen, [("delay", 0), ("instant", 1)])

    def test_a_record_that_another_listener_adds_at_the_commit_is_waited_for(self):
        @sqlalchemy.event.listens_for(self.Session, "before_commit")
        def late(session):
            session.add(Product(name="late"))
        seen = self.watch(self.count)
        with self.Session() as session:
            session.commit()
        self.assertEqual(seen, [("delay", 0), ("instant", 1)])

    def test_only_what_is_modified_is_announced(self):
        self.given(Product(name="a"), Product(name="b"), Secret(name="c"))
        with self.Session.begin() as session:
            session.get(Product, 1).name = "x"
            session.get(Product, 2).name = "b"
            session.get(Secret, 1).name = "d"
        self.assert_told("delay products/1", "instant")

    def test_a_value_that_the_database_computes_is_a_change(self):
        self.given(Product(name="a"), Product(name="b"))
        for column in [Product.name + "x", sqlalchemy.func.upper(Product.name)]:
            self.server.asked.clear()
            with self.Session.begin() as session:
                session.get(Product, 1).name = column
            self.assert_told("delay products/1", "instant")

    def test_what_is_deleted_is_announced_with_all_that_goes_with_it(self):
        self.given(Product(name="a", parts=[Part(), Part()]), Product(name="b", parts=[Part()]))
        with self.Session.begin() as session:
            session.delete(session.get(Product, 1))
        self.assertEqual(set(self.server.told(4)), {"delay products/1", "delay parts/1", "delay parts/2", "instant"})
        self.server.asked.clear()
        with self.Session.begin() as session:
            product = session.get(Product, 2)  # held: without it its list could not be changed
            product.parts.clear()  # an orphan
        self.assertEqual(set(self.server.told(3)), {"delay products/2", "delay parts/3", "instant"})
        self.assertEqual((self.count(), self.count(Part)), (1, 0))

    def test_what_is_rolled_back_is_forgotten(self):
        with self.Session() as session:
            session.add(Product(id=1, name="a"))
            session.flush()
            session.rollback()
            self.assert_told("delay products/1", "forget")
            session.add(Product(id=2, name="b"))
            session.flush()  # and closed without a word
        self.assert_told("delay products/1", "forget", "delay products/2", "forget")

    def test_a_savepoint_is_no_end(self):
        with self.Session.begin() as session:
            session.add(Product(id=1, name="a"))
            with session.begin_nested():
                session.add(Product(id=2, name="b"))
            with contextlib.suppress(ZeroDivisionError), session.begin_nested():
                session.add(Product(id=3, name="c"))
                session.flush()
                1 / 0
            self.assert_told("delay products/1", "delay products/2", "delay products/3")
        self.assert_told("delay products/1", "delay products/2", "delay products/3", "instant")
        self.assertEqual(self.count(), 2)

    def test_keys_of_several_columns_and_payloads_of_ones_own(self):
        with self.Session.begin() as session:
            session.add(Price(product=1, currency="€", cents=5))
        self.assertEqual(self.server.told(2)[0], 'delay prices/[1,"€"]')
        self.assertEqual(self.server.asked[0]["messages"][0]["payload"], {"product": 1, "cents": 5})

    def test_a_key_that_changes_is_announced_as_both(self):
        self.given(Price(product=1, currency="EUR", cents=5))
        with self.Session.begin() as session:
            session.get(Price, (1, "EUR")).currency = "USD"
        told = self.server.told(3)
        self.assertEqual(set(told), {'delay prices/[1,"EUR"]', 'delay prices/[1,"USD"]', "instant"})
        messages = [message for request in self.server.asked for message in request["messages"]]
        payloads = {message["key"]: message["payload"] for message in messages}
        self.assertEqual(payloads, {
            '[1,"EUR"]': {"id": [1, "EUR"]}, '[1,"USD"]': {"product": 1, "cents": 5},
        })
        self.given(Product(id=7, name="a"))
        with self.Session.begin() as session:
            session.get(Product, 7).id = 9
        self.server.told(3)
        messages = [message for request in self.server.asked for message in request["messages"]]
        self.assertEqual({message["key"]: message["payload"]["id"] for message in messages}, {"7": 7, "9": 9})

    def test_what_cannot_be_announced_is_not_committed(self):
        self.server.answer = lambda request: {"ok": False, "error": "Kafka is away"}
        with self.Session() as session:
            session.add(Product(id=1, name="a"))
            self.assertRaises(ksync.Error, session.commit)
            session.rollback()
            session.add(Product(id=2, name="b"))
            session.flush()
            self.assertRaises(ksync.Error, session.commit)
            session.rollback()
            self.assertEqual(self.count(), 0)
            self.server.answer = lambda request: None
            self.server.asked.clear()
            session.add(Product(id=3, name="c"))
            session.commit()
        self.assert_told("delay products/3", "instant")
        self.assertEqual(self.count(), 1)

    def test_bulk_is_of_the_transaction_of_the_session(self):
        self.given(Product(name="a"), Product(name="b"))
        with self.Session() as session:
            with ksync.bulk(session.scalars(sqlalchemy.select(Product).order_by(Product.id))) as products:
                ids = [product.id for product in products]
                session.execute(sqlalchemy.update(Product).where(Product.id.in_(ids)).values(name="x"))
            self.assert_told("delay products/1 products/2")
            session.commit()
            self.assert_told("delay products/1 products/2", "instant")
            with ksync.bulk(products):
                session.execute(sqlalchemy.update(Product).values(name="y"))
                session.commit()
        self.assert_told(*2 * ["delay products/1 products/2", "instant"])


def django_database():
    if not DATABASE_URL:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": os.path.join(FOLDER.name, "django")}
    url = urlsplit(DATABASE_URL)
    return {
        "ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], "HOST": url.hostname or "",
        "PORT": url.port or "", "USER": unquote(url.username or ""), "PASSWORD": unquote(url.password or ""),
    }


if django:
    sys.modules["shop"] = types.ModuleType("shop")  # an app of its own: relations are seen from both sides only in one
    sys.modules["shop"].__file__ = __file__
    settings.configure(DATABASES={"default": django_database()}, INSTALLED_APPS=["shop"], USE_TZ=True,
                       DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
    django.setup()
    from django.db import connection, models, transaction

    class Tag(models.Model):
        __ksync_topic__ = "tags"
        objects = ksync.QuerySet.as_manager()

        class Meta:
            app_label = "shop"

    class Article(models.Model):
        __ksync_topic__ = "articles"
        name = models.CharField(max_length=50)
        tags = models.ManyToManyField(Tag)
        objects = ksync.QuerySet.as_manager()

        class Meta:
            app_label = "shop"

    class Draft(Article):
        class Meta:
            app_label, proxy = "shop", True

    class Book(Article):
        pages = models.IntegerField(default=0)

        class Meta:
            app_label = "shop"

    class Note(models.Model):
        __ksync_topic__ = "notes"
        article = models.ForeignKey(Article, models.CASCADE)
        text = models.CharField(max_length=50)
        objects = ksync.QuerySet.as_manager()

        class Meta:
            app_label, base_manager_name = "shop", "objects"

        def ksync_payload(self):
            if self.text == "bad":
                raise KeyError("no such thing")
            return {"id": self.id, "text": self.text}

    class Currency(models.Model):
        __ksync_topic__ = "currencies"
        Code = models.TextChoices("Code", [("EUR", "eur")])
        code = models.CharField(max_length=3, primary_key=True, choices=Code.choices)

        class Meta:
            app_label = "shop"

    ksync.announce(Tag, Article, Note, Currency)

    class Essay(Draft):  # defined when its model has been announced already
        class Meta:
            app_label, proxy = "shop", True


@unittest.skipUnless(django, "Django is not installed")
class DjangoTest(Case):
    def setUp(self):
        super().setUp()
        with connection.schema_editor() as editor:
            for model in Tag, Article, Note, Book, Currency:
                editor.create_model(model)
        self.addCleanup(self.drop)

    def drop(self):
        with connection.schema_editor() as editor:
            for model in Currency, Book, Note, Article, Tag:
                editor.delete_model(model)

    def given(self, *records):
        for record in records:
            record.save()
        self.server.asked.clear()

    @staticmethod
    def count():
        try:
            return Article.objects.count()
        finally:
            connection.close()  # that of the thread of the server

    def test_a_save_outside_of_a_transaction_is_announced_before_its_commit_and_after(self):
        seen = self.watch(self.count)
        article = Article.objects.create(name="a")
        self.assert_told("delay articles/1", "instant")
        self.assertEqual(seen, [("delay", 0), ("instant", 1)])
        article.name = "b"
        article.save()
        article.delete()
        self.assert_told(*3 * ["delay articles/1", "instant"])
        self.assertEqual(seen[2:], [("delay", 1), ("instant", 1), ("delay", 1), ("instant", 0)])

    def test_the_saves_of_a_transaction_are_one(self):
        with transaction.atomic():
            Article.objects.create(id=1)
            with transaction.atomic():
                Article.objects.create(id=2)
            self.assert_told("delay articles/1", "delay articles/2")
        self.assert_told("delay articles/1", "delay articles/2", "instant")
        self.assertEqual(len({request["connection"] for request in self.server.asked}), 1)

    def test_what_is_rolled_back_is_forgotten(self):
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            Article.objects.create(id=1)
            1 / 0
        self.assert_told("delay articles/1", "forget")
        Article.objects.create(id=2)
        self.assert_told("delay articles/1", "forget", "delay articles/2", "instant")

    def test_a_savepoint_that_is_rolled_back_is_no_end(self):
        with transaction.atomic():
            Article.objects.create(id=1)
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                Article.objects.create(id=2)
                1 / 0
            Article.objects.create(id=3)
        self.assert_told("delay articles/1", "delay articles/2", "delay articles/3", "instant")
        self.server.asked.clear()
        with transaction.atomic():
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                Article.objects.create(id=4)
                1 / 0
            self.assert_told("delay articles/4", "forget")
            Article.objects.create(id=5)
        self.assert_told("delay articles/4", "forget", "delay articles/5", "instant")

    def test_what_cannot_be_announced_is_not_committed(self):
        self.server.stop()
        self.assertRaises(ksync.Error, Article.objects.create, id=1)
        with self.assertRaises(ksync.Error), transaction.atomic():
            Article.objects.create(id=2)
        self.assertRaises(ksync.Error, Article.objects.bulk_create, [Article(id=3)])
        self.assertEqual(Article.objects.count(), 0)
        self.assertTrue(connection.get_autocommit())
        self.serve()
        Article.objects.create(id=4)
        self.assert_told("delay articles/4", "instant")

    def test_what_was_sent_long_ago_is_sent_again_before_the_commit(self):
        for seconds, again in (29, []), (31, ["delay articles/1 articles/2"]):
            with self.clock() as wait, transaction.atomic():
                Article.objects.create(id=1)
                Article.objects.create(id=2)
                self.server.told(2)
                seen = self.watch(self.count)
                wait(seconds)
            self.assert_told("delay articles/1", "delay articles/2", *again, "instant")
            self.assertEqual(seen, [*(("delay", 0) for _ in again), ("instant", 2)])
            Article.objects.all()._raw_delete("default")
            self.serve()

    def test_what_was_sent_long_ago_is_rolled_back_where_it_cannot_be_sent_again(self):
        with self.assertRaises(ksync.Error), self.clock() as wait, transaction.atomic():
            Article.objects.create(id=1)
            self.server.told(1)
            self.server.stop()
            wait(31)
        self.assertFalse(connection.in_atomic_block)
        self.assertTrue(connection.get_autocommit())
        self.serve()
        Article.objects.create(id=2)
        self.assertEqual(list(Article.objects.values_list("id", flat=True)), [2])
        self.assert_told("delay articles/2", "instant")

    def test_a_payload_that_raises_is_not_committed_though_the_exception_is_caught(self):
        self.given(Article(id=1), Note(id=7, article_id=1, text="a"))
        with transaction.atomic():
            for change in "bad", "good":
                with contextlib.suppress(KeyError, transaction.TransactionManagementError):
                    note = Note(id=7, article_id=1, text=change)
                    note.save()
        self.assertEqual(Note.objects.get().text, "a")
        with transaction.atomic():
            with contextlib.suppress(KeyError), transaction.atomic():
                Note(id=7, article_id=1, text="bad").save()
            Note(id=8, article_id=1, text="good").save()
        self.assertEqual(list(Note.objects.order_by("id").values_list("text", flat=True)), ["a", "good"])

    def test_a_hook_of_the_application_that_raises_keeps_nothing_back(self):
        def fail():
            raise ZeroDivisionError
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            transaction.on_commit(fail)
            Article.objects.create(id=1)
        self.assert_told("delay articles/1", "instant")

    def test_an_id_that_is_a_choice_is_its_value(self):
        Currency.objects.create(code=Currency.Code.EUR)
        self.assert_told("delay currencies/eur", "instant")
        self.assertEqual(self.server.asked[0]["messages"][0]["payload"], {"id": "eur"})

    def test_what_is_committed_around_a_savepoint_that_failed_is_announced(self):
        refused = {"ok": False, "error": "Kafka is away"}
        with transaction.atomic():
            Article.objects.create(id=1)
            self.server.answer = lambda request: refused if request["op"] == "delay" else None
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                Article.objects.create(id=2)
                1 / 0
            self.server.told(2)
            self.server.answer = lambda request: None
            Article.objects.create(id=3)
            self.server.told(3)
            self.server.asked.clear()
        self.assertEqual(list(Article.objects.order_by("id").values_list("id", flat=True)), [1, 3])
        told = [each for each in self.server.told(3) if each != "forget"]
        self.assertEqual(told, ["delay articles/1 articles/2 articles/3", "instant"])
        self.server.asked.clear()
        Article.objects.create(id=4)
        self.assert_told("delay articles/4", "instant")

    def test_an_update_announces_the_records_that_it_changes(self):
        self.given(Article(id=1, name="a"), Article(id=2, name="b"), Article(id=3, name="a"))
        self.assertEqual(Article.objects.filter(name="a").order_by("id").update(name="c"), 2)
        self.assert_told("delay articles/1 articles/3", "instant")
        self.assertEqual(Article.objects.filter(name="nothing").update(name="c"), 0)
        self.assertEqual(list(Article.objects.order_by("id").values_list("name", flat=True)), ["c", "b", "c"])
        self.assert_told("delay articles/1 articles/3", "instant")

    def test_what_is_changed_through_a_model_of_a_model_is_announced(self):
        self.given(Article(id=1), Article(id=2), Book(id=3))
        for count, (model, id) in enumerate([(Draft, 1), (Essay, 2), (Book, 3)]):
            seen = self.watch(self.count)
            self.server.asked.clear()
            record = model.objects.get(pk=id)
            record.save()
            record.delete()
            deleted = [f"delay articles/{id}"] * (2 if model is Book else 1)  # which is a record of each model
            self.assert_told(f"delay articles/{id}", "instant", *deleted, "instant")
            self.assertEqual([number for _, number in seen], [3 - count] * (2 + len(deleted)) + [2 - count])

    def test_an_update_of_a_primary_key_is_refused(self):
        self.given(Article(id=1, name="a"), Book(id=2, name="b"))
        for model in Article, Draft, Book:
            with self.assertRaisesRegex(ksync.Error, r"ksync\.bulk\(\)"):
                model.objects.filter(name="a").update(name="c", id=6)
        self.assertEqual(list(Article.objects.order_by("id").values_list("id", "name")), [(1, "a"), (2, "b")])
        self.assert_told()

    def test_an_update_tells_payloads_as_they_are_after_it(self):
        self.given(Article(id=1), Note(id=1, article_id=1, text="a"))
        Note.objects.update(text="b")
        self.assert_told("delay notes/1", "instant")
        self.assertEqual(self.server.asked[0]["messages"][0]["payload"], {"id": 1, "text": "b"})

    def test_bulk_methods_of_the_manager(self):
        articles = Article.objects.bulk_create([Article(name="a"), Article(name="b")])
        self.assert_told("delay articles/1 articles/2", "instant")
        for article in articles:
            article.name = "c"
        Article.objects.bulk_update(articles, ["name"])
        self.assertEqual({name for told in self.server.told(4)[2:] for name in told.split()},
                         {"delay", "articles/1", "articles/2", "instant"})
        self.server.asked.clear()
        Article.objects.all().delete()
        self.assertEqual(set(self.server.told(3)), {"delay articles/1", "delay articles/2", "instant"})

    def test_a_deletion_waits_once_for_kafka(self):
        self.given(Article(id=1), Article(id=2), Note(id=7, article_id=1, text="a"))
        os.environ["KSYNC_ANSWER_TIMEOUT"] = "1"
        held = []

        def answer(request):
            if request["op"] != "delay" or len(held) == 2:
                return None
            held.append({"id": request["id"], "ok": True})
            if len(held) < 2:
                return SILENT
            lines = "".join(json.dumps(told) + "\n" for told in held)
            self.server.connections[-1].sendall(lines.encode())
            return SILENT
        self.server.answer = answer
        self.assertEqual(Article.objects.all().delete()[0], 3)
        self.assertEqual(set(self.server.told(4)), {"delay articles/1", "delay articles/2", "delay notes/7", "instant"})
        self.assertFalse(hasattr(Article.objects, "delete"))

    def test_a_deletion_that_cannot_be_announced_is_rolled_back(self):
        self.given(Article(id=1), Article(id=2))
        self.server.answer = lambda request: {"ok": False, "error": "Kafka is away"}
        self.assertRaises(ksync.Error, Article.objects.all().delete)
        self.assertEqual(Article.objects.count(), 2)

    def test_what_a_deletion_takes_along_is_announced(self):
        self.given(Article(id=1), Note(id=7, article_id=1))
        Article.objects.get().delete()
        self.assertEqual(set(self.server.told(3)), {"delay articles/1", "delay notes/7", "instant"})

    def test_a_related_manager_adds_by_the_base_manager(self):
        self.given(Article(id=1), Article(id=2), Note(id=7, article_id=1))
        Article.objects.get(id=2).note_set.add(Note.objects.get())
        self.assert_told("delay notes/7", "instant")

    def test_both_sides_of_a_relation_are_announced(self):
        article, tag = Article(id=1), Tag(id=8)
        self.given(article, tag)
        article.tags.add(tag)
        article.tags.remove(tag)
        tag.article_set.add(article)
        article.tags.clear()
        self.assert_told(*2 * ["delay articles/1", "delay tags/8", "instant"],
                         "delay tags/8", "delay articles/1", "instant", "delay articles/1", "instant")

    def test_bulk_is_of_the_transaction_around_it(self):
        self.given(Article(id=1), Article(id=2))
        with ksync.bulk(Article.objects.order_by("id")) as articles, connection.cursor() as cursor:
            self.assert_told("delay articles/1 articles/2")
            cursor.execute("UPDATE shop_article SET name = 'x'")
        self.assert_told("delay articles/1 articles/2", "instant")
        with transaction.atomic():
            with ksync.bulk(articles[:1]):
                pass
            self.assert_told("delay articles/1 articles/2", "instant", "delay articles/1")
        self.assert_told("delay articles/1 articles/2", "instant", "delay articles/1", "instant")
        with contextlib.suppress(ZeroDivisionError), transaction.atomic(), ksync.bulk(articles[:1]):
            1 / 0
        self.assertEqual(self.server.told(6)[4:], ["delay articles/1", "forget"])

    def test_bulk_of_messages_is_of_the_transaction_around_it_too(self):
        self.given(Article(id=1))
        seen = self.watch(self.count)
        with transaction.atomic():
            for records in [ksync.message("articles", 2)], [Article(id=3)]:
                with ksync.bulk(records):
                    Article.objects.all()._raw_delete("default")
        self.assert_told("delay articles/2", "delay articles/3", "instant")
        self.assertEqual(seen, [("delay", 1), ("delay", 1), ("instant", 0)])

    def test_bulk_whose_block_raises_is_announced_where_the_transaction_around_it_is_committed(self):
        with transaction.atomic(), contextlib.suppress(ZeroDivisionError), ksync.bulk([ksync.message("articles", 1)]):
            1 / 0
        self.assert_told("delay articles/1", "instant")
        with contextlib.suppress(ZeroDivisionError), ksync.bulk([ksync.message("articles", 2)]):
            1 / 0
        self.assert_told("delay articles/1", "instant", "delay articles/2", "forget")

    def test_a_test_can_see_what_would_be_sent(self):
        ksync.sent = []
        with transaction.atomic():
            Article.objects.create(id=1)
        seen = [(message["op"], message["key"]) for message in ksync.sent]
        self.assertEqual(seen, [("delay", "1"), ("instant", "1")])


if __name__ == "__main__":
    unittest.main()

"""A handler for ksync-consume: brings a copy of the table up to date, keeps a journal, and fails in many ways.

    python3 -I -S handler.py FOLDER POSTGRES SEED              a process for each batch
    python3 -I -S handler.py FOLDER POSTGRES SEED --worker     one for many
"""

import fcntl
import os
import signal
import sys
import time
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from journal import Journal
from postgres import Postgres

FENCE = """BEGIN; UPDATE terms SET term = {term} WHERE name = '{name}' AND "partition" = {partition}
    AND term <= {term} RETURNING term"""
# In one statement, so that the snapshot that is told is the one that was read by.
COPY = """WITH written AS (
    INSERT INTO copy (name, id, version, term)
    SELECT '{name}', id, version, {term} FROM rec WHERE id = ANY('{{{ids}}}')
    ON CONFLICT (name, id) DO UPDATE SET version = excluded.version, term = excluded.term RETURNING 1
) SELECT pg_current_snapshot(), count(*) FROM written"""
ACCEPTED = """INSERT INTO accepted (name, "partition", term, first, last)
    VALUES ('{name}', {partition}, {term}, {first}, {last}); COMMIT"""
# Of a thousand runs; what is left does its work.
FAILURES = [("fails before", 30), ("fails after", 30), ("hangs", 10), ("dies", 10), ("reads a part", 10),
            ("leaves a grandchild", 10)]
LONG_SECS = 600


class Batch:
    def __init__(self, lines, name, partition, term, attempt):
        self.name, self.partition, self.term, self.attempt = name, partition, term, attempt
        self.offsets, self.ids, self.sum = [], set(), 0
        for line in lines:
            self.take(line)

    def take(self, line):
        """Without a JSON parser: what counts are the bytes."""
        at = line.index(b'"offset":') + 9
        offset = int(line[at:line.index(b",", at)])
        payload = line[line.index(b'"payload":') + 10:line.rindex(b"}")]
        self.offsets.append(offset)
        self.ids.add(int(payload[6:payload.index(b",")]))
        self.sum = (self.sum + (offset + 1) * zlib.crc32(payload)) % 2**64

    @property
    def is_contiguous(self):
        return self.offsets == list(range(self.offsets[0], self.offsets[0] + len(self.offsets)))


def failure_of(*batch):
    """By what tells the batch from all others."""
    number = zlib.crc32(" ".join(map(str, batch)).encode()) % 1000
    for failure, share in FAILURES:
        number -= share
        if number < 0:
            return failure
    return None


class Handler:
    def __init__(self, folder, url, seed, is_worker):
        self.folder, self.url, self.seed, self.is_worker = folder, url, seed, is_worker
        self.journal = Journal(f"{folder}/runs.jsonl")

    def work(self, batch):
        """One run; gives its outcome, for which "done" is the only good one."""
        run = f"{os.getpid()}-{time.time_ns() // 1000}"
        if not batch.is_contiguous:
            self.journal.add("holes", run=run, name=batch.name, partition=batch.partition, offsets=batch.offsets)
            return "holes"
        first, last = batch.offsets[0], batch.offsets[-1]
        with open(f"{self.folder}/locks/{batch.name}-{batch.partition}", "a+") as lock:
            beside = self.lock(lock, run)
            self.journal.add("begun", run=run, name=batch.name, partition=batch.partition, term=batch.term,
                             attempt=batch.attempt, first=first, last=last, beside=beside)
            outcome, found = self.outcome(batch, lock)
            self.journal.add("ended", run=run, outcome=outcome, sum=batch.sum, **found)
            return outcome

    def lock(self, lock, run):
        """Takes the lock that every run of this partition and name holds to its end; gives the run that has it still."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            return lock.read() or "?"
        lock.truncate(0)
        lock.write(run)
        lock.flush()
        return None

    def outcome(self, batch, lock):
        failure = failure_of(self.seed, batch.name, batch.partition, batch.offsets[0], batch.term, batch.attempt)
        if os.path.exists(f"{self.folder}/outage-{batch.name}"):
            return "store is away", {}
        if failure == "fails before":
            return failure, {}
        if failure == "hangs":
            self.journal.add("hangs", name=batch.name, partition=batch.partition)
            time.sleep(LONG_SECS)
        if failure == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if failure == "leaves a grandchild" and not self.is_worker and os.fork() == 0:
            # It holds our outputs, and the lock: whoever runs beside it is told.
            os.set_inheritable(lock.fileno(), True)
            os.execv("/bin/sleep", ["sleep", str(LONG_SECS)])
        snapshot = self.write(batch)
        if snapshot is None:
            return "refused", {}
        return "fails after" if failure == "fails after" else "done", {"snapshot": snapshot}

    def write(self, batch):
        """None if a later leader has written."""
        known = {"name": batch.name, "partition": batch.partition, "term": batch.term}
        database = Postgres(self.url)
        # Locked first, looked up second: whoever writes later has read later.
        if not database.run(FENCE.format(**known)):
            return None
        # In one order everywhere, or two transactions could wait for each other.
        ids = ",".join(map(str, sorted(batch.ids)))
        ((snapshot, _),) = database.run(COPY.format(ids=ids, **known))
        database.run(ACCEPTED.format(first=batch.offsets[0], last=batch.offsets[-1], **known))
        return snapshot


STATUS = {"done": 0, "store is away": 75, "refused": 75}


def one_batch(handler):
    env = os.environ
    name, first = env["KSYNC_BATCH_NAME"], int(env["KSYNC_BATCH_FIRST_OFFSET"])
    partition, term, attempt = (int(env[f"KSYNC_BATCH_{word}"]) for word in ("PARTITION", "TERM", "ATTEMPT"))
    if failure_of(handler.seed, name, partition, first, term, attempt) == "reads a part":
        os.read(0, 1)
        handler.journal.add("reads a part", name=name, partition=partition, first=first)
        return 0  # Which is not to count.
    data = sys.stdin.buffer.read()
    lines = data.splitlines()
    if len(lines) != int(env["KSYNC_BATCH_COUNT"]) or not data.endswith(b"\n"):
        # So ends the input of a ksync that was killed.
        handler.journal.add("cut", pid=os.getpid())
        return 1
    return STATUS.get(handler.work(Batch(lines, name, partition, term, attempt)), 1)


def many_batches(handler, name):
    import json

    def answer(**message):
        print(json.dumps(message), flush=True)

    batch, lines = None, []
    for line in sys.stdin.buffer:
        if b'"payload":' in line:
            lines.append(line)
            continue
        message = json.loads(line)
        if message["type"] == "hello":
            answer(type="ready")
        elif message["type"] == "batch":
            batch, lines = message, []
        elif message["type"] == "cancel":
            batch = None
        elif message["type"] == "end" and batch:
            records = Batch(lines, name, batch["partition"], batch["term"], batch["attempt"])
            status = STATUS.get(handler.work(records), 1)
            if status == 1:
                return 1
            if status == 75:
                answer(type="backoff", id=batch["id"], ms=500)
            else:
                answer(type="done", id=batch["id"])
            batch = None
        elif message["type"] == "shutdown":
            break
    return 0


def main():
    folder, url, seed, *rest = sys.argv[1:]
    handler = Handler(folder, url, seed, bool(rest))
    return many_batches(handler, "cache") if rest else one_batch(handler)


if __name__ == "__main__":
    sys.exit(main())

"""What happened near a violation, for whoever looks for its cause."""

import bisect
import re

from fences import NODE
from history import Seat
from logs import lines
from logs import logs

NEAR_SECS = 5.0
# A run is over by then, or killed.
LONGEST_RUN_SECS = 60.0
MOST_NEAR = 20
# Of a transaction and its records, however far away.
MOST_OF_ITS_OWN = 12
# In a violation's text.
SEAT = re.compile(r"\b([a-z]+)/(\d+)\b")
NAME = re.compile(r"\b([a-z]+)(?:-\d\b|:)")
TRANSACTION = re.compile(r"\btransaction (\d+)")
RECORD = re.compile(r"(?:\brecord|\bversion \d+ of|of the primary:) (\d+)")
# In a log.
PARTITION = re.compile(r" chaos(?:-delay)?/(\d+)\b")
MEMBERS = ("started", "terminated", "ended", "ended by itself")


class Subject:
    """What a violation is about, as far as its text names it."""

    def __init__(self, history, text):
        names = {*history.names(), "delayer"}
        self.seats = {Seat(name, int(partition)) for name, partition in SEAT.findall(text) if name in names}
        self.names = {seat.name for seat in self.seats} | names.intersection(NAME.findall(text))
        self.op, self.id = (int(found[1]) if (found := words.search(text)) else None for words in (TRANSACTION, RECORD))
        if self.id is not None and not self.seats:
            self.seats = {
                Seat(name, partition) for partition, log in enumerate(history.instant) if self.id in log.ids
                for name in self.names or {"delayer"}
            }
            self.names |= {seat.name for seat in self.seats}

    def has(self, seat):
        return seat in self.seats if self.seats else seat.name in self.names

    def has_member(self, name):
        return name.rpartition("-")[0] in self.names or name == "writers" and self.op is not None

    def has_partition(self, partition):
        return not self.seats or partition in {seat.partition for seat in self.seats}


def around(history, violation):
    """The lines of what happened to its seats and to all within some seconds, and of all that became of its transaction."""
    subject, at = Subject(history, violation.text), violation.at
    near = [*faults(history), *members(history, subject), *runs(history, subject, at), *writes(history, subject, at)]
    near += log_lines(history, subject, at)
    near = sorted((line for line in near if abs(line[0] - at) <= NEAR_SECS), key=lambda line: line[0])
    middle = bisect.bisect(near, at, key=lambda line: line[0])
    near = near[max(0, middle - MOST_NEAR // 2):middle + MOST_NEAR // 2]
    own = [*of_transaction(history, subject), *of_records(history, subject)][:MOST_OF_ITS_OWN]
    return [f"{when:.3f} {text}" for when, text in sorted({*near, *own})]


def faults(history):
    for fault in history.faults:
        yield fault.begun, f"fault: {fault.kind} {fault.victims}"
        yield fault.healed, f"healed: {fault.kind} {fault.victims}"
    for note in history.noted("stalled"):
        yield note["at"], f"the machine stood still for {note['secs']} s"


def members(history, subject):
    for note in history.notes:
        if note["event"] in MEMBERS and subject.has_member(note["member"]):
            told = {name: value for name, value in note.items() if name not in ("event", "at")}
            yield note["at"], f"{note['event']}: {' '.join(f'{name}={value}' for name, value in told.items())}"


def runs(history, subject, at):
    begin = bisect.bisect(history.runs, at - LONGEST_RUN_SECS, key=lambda run: run.begun)
    end = bisect.bisect(history.runs, at + NEAR_SECS, key=lambda run: run.begun)
    for run in history.runs[begin:end]:
        if subject.has(run.seat):
            yield from lines_of(run)


def lines_of(run):
    text = f"run {run.run} of {run.seat}, term {run.term}, offsets {run.first} to {run.last}"
    yield run.begun, f"{text} begins"
    if run.ended:
        yield run.ended, f"{text}: {run.outcome}"


def writes(history, subject, at):
    """To ZooKeeper."""
    begin = bisect.bisect(history.txns, at - NEAR_SECS, key=lambda txn: txn.at)
    end = bisect.bisect(history.txns, at + NEAR_SECS, key=lambda txn: txn.at)
    for txn in history.txns[begin:end]:
        if txn.closes_session:
            yield txn.at, f"zookeeper: session {txn.session:x} is closed"
        for operation in txn.operations:
            node = NODE.fullmatch(operation.path)
            # By setting its candidate a leader only shows that it lives.
            is_beat = node and node[4].startswith("leader/") and operation.kind == "set"
            is_told = node and node[4] != "state" and operation.kind != "check" and not is_beat
            if is_told and subject.has(Seat(node[3], int(node[2]))):
                value = f" = {operation.data.decode()}" if node[4] == "offset" else ""
                term = f", term {txn.zxid}, session {txn.session:x}" if operation.kind == "create" else ""
                yield txn.at, f"zookeeper: {operation.kind} {operation.path}{value}{term}"


def log_lines(history, subject, at):
    for member, file in logs(history):
        if not subject.has_member(member):
            continue
        for when, text in lines(history, member, file):
            partition = PARTITION.search(text)
            if abs(when - at) <= NEAR_SECS and (not partition or subject.has_partition(int(partition[1]))):
                yield when, f"{file.name}: {text}"


def of_transaction(history, subject):
    op = history.ops.get(subject.op)
    if op:
        yield op.begun, f"transaction {op.op} begins: its delay messages are acknowledged"
        if op.committed:
            yield op.committed, f"transaction {op.op} has committed"
        if op.ended:
            yield op.ended, f"the ksync-stream of transaction {op.op} ends with status {op.status}"


def of_records(history, subject):
    """The last messages of the record and the transaction that are named, and who handled them."""
    if subject.op is None and subject.id is None:
        return
    for topic, logs in (("delay", history.delayed), ("instant", history.instant)):
        for partition, log in enumerate(logs):
            for offset in places(log, subject):
                text = f"{topic} message {partition}/{offset}: record {log.ids[offset]} of transaction {log.ops[offset]}"
                yield log.millis[offset] / 1000, text
                if topic == "instant":
                    yield from handled(history, subject, partition, offset)


def places(log, subject):
    found = [
        offset for offset, (op, id) in enumerate(log.keys())
        if subject.op in (None, op) and subject.id in (None, id)
    ]
    return found[-2:]


def handled(history, subject, partition, offset):
    for run in history.runs:
        if run.seat.partition == partition and run.first <= offset <= run.last and subject.has(run.seat):
            yield from lines_of(run)

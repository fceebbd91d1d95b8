"""What happened in a run, as the journals, the primary, the topics and ZooKeeper's logs have it."""

import dataclasses
from array import array
from pathlib import Path


# Why leases end, as src/election/lease.rs says it: what a machine with too much to do explains, and what its own process did.
BY_LOAD = ("deposed: the own candidate is gone", "the connection to ZooKeeper broke", "ZooKeeper has answered no write for ")
CLOSED = "the election was closed"
# Faults that hold up no seat, and those that hold up no delayer's.
UNFELT = ("writers killed", "clock jumps", "clock strobes")
OF_HANDLERS = ("handlers killed", "handler stopped")


@dataclasses.dataclass(frozen=True)
class Seat:
    """What one process leads at a time."""

    name: str
    partition: int

    def __str__(self):
        return f"{self.name}/{self.partition}"


@dataclasses.dataclass(frozen=True)
class Violation:
    """A promise that was broken: by which of the checker's points, what of it, and where to look."""

    point: int
    text: str
    at: float = 0.0


class Log:
    """A partition of a topic: the offset of a record is its place."""

    def __init__(self):
        self.ids, self.ops, self.millis = array("I"), array("I"), array("Q")
        # Of all up to a record, so that those of a batch are a difference.
        self.sums = array("Q", [0])

    def __len__(self):
        return len(self.ids)

    def add(self, id, op, millis, checksum):
        """`checksum` is that of the payload's bytes."""
        self.sums.append((self.sums[-1] + (len(self) + 1) * checksum) % 2**64)
        self.ids.append(id)
        self.ops.append(op)
        self.millis.append(millis)

    def sum(self, first, last):
        return (self.sums[last + 1] - self.sums[first]) % 2**64

    def key(self, offset):
        return self.ops[offset], self.ids[offset]

    def keys(self):
        """For each record what tells its change from all others."""
        return zip(self.ops, self.ids)


@dataclasses.dataclass
class Run:
    """One run of the handler. Without an outcome it was killed."""

    seat: Seat
    run: str
    term: int
    first: int
    last: int
    begun: float
    ended: float = None
    outcome: str = None
    snapshot: str = ""
    sum: int = 0
    # Another run that had not ended.
    beside: str = None

    @property
    def is_done(self):
        return self.outcome == "done"


@dataclasses.dataclass
class Op:
    """A transaction of a writer, as its action saw it."""

    op: int
    rows: int
    begun: float
    # When it had committed and said so; None if it rolled back, died, or was never heard of.
    committed: float = None
    # That of its ksync-stream, and when it ended.
    status: int = None
    ended: float = 0.0

    @property
    def is_complete(self):
        """All instant messages were acknowledged."""
        return self.status == 0


@dataclasses.dataclass
class Fault:
    kind: str
    begun: float
    healed: float
    victims: list = dataclasses.field(default_factory=list)

    @property
    def takes_leases_until(self):
        """Of ZooKeeper's only the beginning does: whoever leads later leads in spite of it."""
        return self.begun if self.kind.startswith("zookeeper") else self.healed

    def hits(self, name, member=None):
        """Whether processes of that name may feel it, or that one of them, where it is known who counts: what hit others of ours
        alone these do not feel.
        """
        if self.kind == "store away":
            return not self.victims or name in self.victims
        kinds = {str(victim).rpartition("-")[0] for victim in self.victims}
        if kinds <= {"kafka", "zookeeper", ""}:
            return True
        return member in self.victims if member else name in kinds

    def is_felt_by(self, seat):
        """Whether it may hold up the work of a seat."""
        if seat.name == "delayer" and self.kind in OF_HANDLERS:
            return False
        return self.kind not in UNFELT and self.hits(seat.name)


@dataclasses.dataclass(frozen=True)
class Loss:
    """A lease that ended although its leader had not given it up."""

    seat: Seat
    # When that was told.
    at: float
    member: str
    why: str

    @property
    def is_by_load(self):
        return self.why.startswith(BY_LOAD)


@dataclasses.dataclass
class Settings:
    delay_secs: float
    session_secs: float
    batch_size: int
    partitions: int
    # Processes that live from the beginning to the end, so that it can be seen whether they grow.
    spared: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class History:
    settings: Settings
    # By partition.
    instant: list = dataclasses.field(default_factory=list)
    delayed: list = dataclasses.field(default_factory=list)
    # Each committed change of the primary: (id, version, op, xid), in the order of versions for each id.
    changes: list = dataclasses.field(default_factory=list)
    # {id: version}, and that of each name's copy.
    primary: dict = dataclasses.field(default_factory=dict)
    copies: dict = dataclasses.field(default_factory=dict)
    # What the secondary has let in, in its order: (Seat, term, first, last).
    accepted: list = dataclasses.field(default_factory=list)
    runs: list = dataclasses.field(default_factory=list)
    # Runs whose offsets had holes.
    holes: list = dataclasses.field(default_factory=list)
    ops: dict = dataclasses.field(default_factory=dict)
    txns: list = dataclasses.field(default_factory=list)
    faults: list = dataclasses.field(default_factory=list)
    # All other lines of the harness' own journal.
    notes: list = dataclasses.field(default_factory=list)
    # In the order in which that was told.
    lost_leases: list = dataclasses.field(default_factory=list)
    # Which process it was that led, by seat and term.
    leaders: dict = dataclasses.field(default_factory=dict)
    # The folder with those of the processes.
    logs: Path = None
    # What was read of them, by file: (when, text).
    log_lines: dict = dataclasses.field(default_factory=dict)
    # From when to when the world was under test.
    begun: float = 0.0
    ended: float = 0.0

    def names(self):
        return sorted(self.copies)

    def runs_of(self, seat):
        return [run for run in self.runs if run.seat == seat]

    def noted(self, event):
        return [note for note in self.notes if note["event"] == event]

    def healthy(self, seat=None):
        """The times in which nothing was broken; of a seat nothing that it can feel."""
        spans, since = [], self.begun
        for fault in sorted(self.faults, key=lambda fault: fault.begun):
            if seat and not fault.is_felt_by(seat):
                continue
            if fault.begun > since:
                spans.append((since, fault.begun))
            since = max(since, fault.healed)
        return [*spans, (since, self.ended)] if since < self.ended else spans


class Snapshot:
    """What a transaction of Postgres could see: `xmin:xmax:xip,..`."""

    def __init__(self, text):
        xmin, xmax, running = text.split(":")
        self.xmin, self.xmax = int(xmin), int(xmax)
        self.running = {int(xid) for xid in running.split(",") if xid}

    def sees(self, xid):
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)

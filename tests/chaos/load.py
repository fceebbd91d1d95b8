"""Brings a run's evidence together: first into files of its folder, then from these into a History."""

import subprocess
import shutil
import zlib

import txn_log
from history import Fault
from history import History
from history import Log
from history import Op
from history import Run
from history import Seat
from history import Settings
from journal import entries
from logs import leaders
from logs import lost_leases
from programs import Failure
from programs import find_postgres
from world import DELAY_TOPIC
from world import PARTITIONS
from world import TOPIC

TABLES = {
    "hist": "SELECT id, version, op, xid FROM hist ORDER BY id, version",
    "rec": "SELECT id, version FROM rec",
    "copy": "SELECT name, id, version FROM copy",
    "accepted": """SELECT name, "partition", term, first, last FROM accepted ORDER BY number""",
}


def gather(world):
    """Copies what only the servers have."""
    for name, query in TABLES.items():
        copy = f"COPY ({query}) TO STDOUT"
        to_file(world.history / f"{name}.tsv", [find_postgres("psql"), "-X", "-q", world.postgres, "-c", copy])
    for topic in (TOPIC, DELAY_TOPIC):
        for partition in range(PARTITIONS):
            place = ["-b", world.kafka, "-t", topic, "-p", str(partition), "-o", "beginning", "-e", "-q"]
            to_file(world.history / f"{topic}-{partition}.tsv", ["kcat", "-C", *place, "-f", "%o %T %s\n"])
    for number, folder in enumerate(world.variables["KSYNC_ZOOKEEPER_DATA"].split(":"), 1):
        for file in (world.servers_folder / folder / "version-2").glob("log.*"):
            shutil.copy(file, world.history / f"zookeeper-{number}-{file.name}")
        for file in (world.servers_folder / folder / "version-2").glob("snapshot.*"):
            # Its name tells all that is to be known of it.
            (world.history / f"zookeeper-{number}-{file.name}").touch()


def to_file(path, command):
    with open(path, "wb") as file:
        if subprocess.run(command, stdout=file, timeout=600).returncode != 0:
            raise Failure(f"{command[0]} cannot read {path.stem}")


def load(folder):
    """The history of a run, from nothing but the files in this folder."""
    notes = list(entries(folder / "world.jsonl"))
    settings = next(note for note in notes if note["event"] == "settings")
    # An older run has not noted all of them.
    history = History(Settings(**{name: settings[name] for name in Settings.__dataclass_fields__ if name in settings}))
    history.notes = [note for note in notes if note["event"] not in ("fault", "healed")]
    history.begun = next(note["at"] for note in notes if note["event"] == "begun")
    history.ended = next(note["at"] for note in notes if note["event"] == "settled")
    history.faults = faults(notes)
    history.instant = [topic(folder / f"{TOPIC}-{number}.tsv", is_delayed=False) for number in range(PARTITIONS)]
    history.delayed = [topic(folder / f"{DELAY_TOPIC}-{number}.tsv", is_delayed=True) for number in range(PARTITIONS)]
    history.changes = [tuple(map(int, row)) for row in table(folder / "hist.tsv")]
    history.primary = {int(id): int(version) for id, version in table(folder / "rec.tsv")}
    for name, id, version in table(folder / "copy.tsv"):
        history.copies.setdefault(name, {})[int(id)] = int(version)
    for name, *numbers in table(folder / "accepted.tsv"):
        partition, term, first, last = map(int, numbers)
        history.accepted.append((Seat(name, partition), term, first, last))
    history.runs, history.holes = runs(folder / "runs.jsonl")
    history.ops = ops(folder / "actions.jsonl", notes)
    history.txns = txn_log.without_gaps(txn_log.read(folder))
    history.logs = folder.parent / "logs"
    history.lost_leases, history.leaders = lost_leases(history), leaders(history)
    return history


def table(path):
    with open(path) as file:
        for line in file:
            yield line.rstrip("\n").split("\t")


def topic(path, is_delayed):
    log = Log()
    with open(path, "rb") as file:
        for line in file:
            offset, millis, value = line.rstrip(b"\n").split(b" ", 2)
            if int(offset) != len(log):
                raise Failure(f"{path}: offset {int(offset)} where {len(log)} was due")
            payload = value[value.index(b'{"id":'):value.index(b"}") + 1] if is_delayed else value
            id, op = payload[6:].split(b",", 2)[:2]
            log.add(int(id), int(op[5:]), int(millis), zlib.crc32(payload))
    return log


def runs(path):
    """By the time of their beginning; and those whose records had holes."""
    found, holes = {}, []
    for entry in entries(path):
        if entry["event"] == "begun":
            seat = Seat(entry["name"], entry["partition"])
            members = {name: entry[name] for name in ("run", "term", "first", "last", "beside")}
            found[entry["run"]] = Run(seat=seat, begun=entry["at"], **members)
        elif entry["event"] == "ended":
            run = found[entry["run"]]
            run.ended, run.outcome, run.sum = entry["at"], entry["outcome"], entry["sum"]
            run.snapshot = entry.get("snapshot", "")
        elif entry["event"] == "holes":
            holes.append(entry)
    return sorted(found.values(), key=lambda run: run.begun), holes


def ops(path, notes):
    found = {}
    for entry in entries(path):
        if entry["event"] == "begun":
            found[entry["op"]] = Op(entry["op"], entry["rows"], entry["at"])
        elif entry["event"] == "committed":
            found[entry["op"]].committed = entry["at"]
    for note in notes:
        if note["event"] == "wrote":
            for op in range(note["first"], note["first"] + len(note["plan"])):
                if op in found:
                    found[op].status, found[op].ended = note["status"], note["at"]
    return found


def faults(notes):
    """Those that hit something; what was not healed by itself was when all was."""
    healed = {note["number"]: note for note in notes if note["event"] == "healed"}
    end = next(note for note in notes if note["event"] == "all healed")
    found = []
    for note in notes:
        if note["event"] == "fault":
            last = healed.get(note["number"], end)
            if "missed" not in last:
                found.append(Fault(note["kind"], note["at"], last["at"], last.get("victims", [])))
    return found

"""Whether the copies became what the primary is, and whether each change was looked at after its commit."""

from collections import defaultdict

from history import Snapshot
from history import Violation


def convergence(history):
    """1: in the end each copy is the primary."""
    for name, copy in history.copies.items():
        different = [id for id in history.primary.keys() | copy.keys() if history.primary.get(id) != copy.get(id)]
        if different:
            first = [f"{id}: {copy.get(id)} for {history.primary.get(id)}" for id in sorted(different)[:5]]
            text = f"{name}: {len(different)} rows are not those of the primary: {', '.join(first)}"
            yield Violation(1, text, history.ended)


def no_lost_update(history):
    """2: for each change there is a successful run that had its record, and that could see its commit."""
    for name in history.names():
        unseen = unseen_changes(history, name)
        if unseen:
            first = [f"version {version} of {id} (transaction {op})" for id, version, op in unseen[:5]]
            committed = history.ops[unseen[0][2]].begun if unseen[0][2] in history.ops else history.ended
            yield Violation(2, f"{name}: {len(unseen)} changes were never seen: {', '.join(first)}", committed)


def unseen_changes(history, name):
    waiting = defaultdict(list)
    for id, version, op, xid in reversed(history.changes):
        waiting[id].append((xid, version, op))
    for run in history.runs:
        if run.seat.name != name or not run.is_done:
            continue
        snapshot = Snapshot(run.snapshot)
        for id in set(history.instant[run.seat.partition].ids[run.first:run.last + 1]):
            changes = waiting.get(id)
            while changes and snapshot.sees(changes[-1][0]):
                changes.pop()
    return sorted((id, version, op) for id, changes in waiting.items() for _, version, op in changes)

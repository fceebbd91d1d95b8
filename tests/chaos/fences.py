"""Who led when, by ZooKeeper's own log, and whether only the leader of the moment wrote the offset."""

import dataclasses
import json
import re

from history import Seat
from history import Violation

NODE = re.compile(r"(?:/[^/]+)*?/kafka_sync/consumer/([^/]+)/(\d+)/([^/]+)/(leader/[^/]+|offset|state)")


@dataclasses.dataclass
class Commit:
    at: float
    offset: int


@dataclasses.dataclass
class Reign:
    """One leader of a seat. Its term is the number of the transaction that made its candidate."""

    seat: Seat
    term: int
    commits: list = dataclasses.field(default_factory=list)


class Fences:
    """Goes through the log once."""

    def __init__(self, txns):
        self.violations, self.reigns = [], {}
        # By seat and then by sequence number: (path, session, term).
        self.candidates, self.highest = {}, {}
        # When each term's candidate was gone.
        self.gone = {}
        self.terms = {}
        for txn in txns:
            if txn.closes_session:
                self.drop(txn.at, lambda candidate: candidate[1] == txn.session)
            elif txn.is_multi:
                self.judge(txn)
            else:
                for operation in txn.operations:
                    self.take(txn, operation)

    def take(self, txn, operation):
        node = NODE.fullmatch(operation.path)
        if operation.kind == "delete":
            self.drop(txn.at, lambda candidate: candidate[0] == operation.path)
        elif node and node[4].startswith("leader/") and operation.kind == "create":
            seat = seat_of(node)
            candidate = (operation.path, txn.session, txn.zxid)
            self.candidates.setdefault(seat, {})[int(operation.path[-10:])] = candidate
            self.terms.setdefault(seat, set()).add(txn.zxid)
        elif node and node[4] in ("offset", "state"):
            self.violate(txn, f"{seat_of(node)}: {node[4]} was written without a fence")

    def drop(self, at, is_gone):
        for seat, candidates in self.candidates.items():
            for sequence, candidate in list(candidates.items()):
                if is_gone(candidate):
                    self.gone[seat, candidate[2]] = at
                    del candidates[sequence]

    def judge(self, txn):
        writes = {}
        for operation in txn.operations:
            node = NODE.fullmatch(operation.path)
            if node and node[4] in ("offset", "state") and operation.kind in ("set", "create"):
                writes.setdefault(seat_of(node), {})[node[4]] = operation.data.decode()
        for seat, written in writes.items():
            self.commit(txn, seat, written)

    def commit(self, txn, seat, written):
        queue = self.candidates.get(seat)
        if not queue:
            return self.violate(txn, f"{seat}: the offset was written while nobody led")
        path, session, term = queue[min(queue)]
        checked = [operation.path for operation in txn.operations if operation.kind == "check"]
        if path not in checked or session != txn.session:
            return self.violate(txn, f"{seat}: the offset was written by another than the leader {path}")
        reigns = self.reigns.setdefault(seat, [])
        if reigns and reigns[-1].term > term:
            self.violate(txn, f"{seat}: the term went back from {reigns[-1].term} to {term}")
        if not reigns or reigns[-1].term != term:
            reigns.append(Reign(seat, term))
        if written.get("state") and json.loads(written["state"])["term"] != term:
            self.violate(txn, f"{seat}: the state has another term than {term}, that of its candidate")
        if written.get("offset"):
            offset = int(written["offset"])
            if offset < self.highest.get(seat, 0):
                self.violate(txn, f"{seat}: the offset went back from {self.highest[seat]} to {offset}")
            self.highest[seat] = max(offset, self.highest.get(seat, 0))
            reigns[-1].commits.append(Commit(txn.at, offset))

    def violate(self, txn, text):
        self.violations.append(Violation(5, text, txn.at))

    def commits(self, seat):
        return [commit for reign in self.reigns.get(seat, []) for commit in reign.commits]


def lost_by_load(history, fences, seat):
    """(when, member) of the seat's leases that were lost for what a machine with too much to do explains.

    Who has stood still tells of it late: it was when the candidate was gone.
    """
    reigns = [reign for reign in fences.reigns.get(seat, ()) if reign.commits]
    for loss in history.lost_leases:
        if loss.seat == seat and loss.is_by_load:
            gone = [
                fences.gone.get((seat, reign.term), loss.at) for reign in reigns
                if history.leaders.get((seat, reign.term)) == loss.member and reign.commits[0].at <= loss.at
            ]
            yield min([loss.at, *gone[-1:]]), loss.member


def seat_of(node):
    return Seat(node[3], int(node[2]))


def fenced(_history, fences):
    """5: each write of an offset is fenced by the candidate that leads; neither term nor offset goes back."""
    yield from fences.violations

"""Whether the handlers are seldom given records twice."""

import bisect

from deliveries import CLOCK_SECS
from deliveries import seats
from faults import of_brokers
from fences import lost_by_load
from history import Violation

# These repeat nothing: before a clean end all that is done is committed.
CLEAN = ("terminate", "rolling restart", "writers killed", "broker killed", "broker stopped", "store away", "clock jumps",
         "clock strobes")


class Excuses:
    """By what the leaders of a seat may come to repeat something: faults, and leases that were lost."""

    def __init__(self, history, fences, seat):
        self.faults, self.leaders, self.gone, self.seat = history.faults, history.leaders, fences.gone, seat
        self.session_secs, self.brokers = history.settings.session_secs, of_brokers(history)
        self.lost = list(lost_by_load(history, fences, seat))
        # Who was asked to end and could not in its time, because it could not commit.
        self.cut_short = [note for note in history.noted("terminated") if note["status"] != 0]

    def holds(self, run, before):
        near = self.near(run, before)
        if run.term != before.term:
            return any(kind not in CLEAN for kind in near) or self.was_deposed(before, run)
        # It had written down that all was done, and did not live to say so.
        return any(kind in ("handlers killed", "handler stopped") for kind in near)

    def near(self, run, before):
        """What the older one of both leaders may have felt between what it had done and its end."""
        term = min(run.term, before.term)
        member = self.leaders.get((self.seat, term))
        since, until = before.ended - self.session_secs, self.gone.get((self.seat, term), run.begun) + self.session_secs
        for fault in self.faults:
            if fault.hits(self.seat.name, member) and fault.begun <= min(run.begun, until) and fault.takes_leases_until >= since:
                yield fault.kind
        for note in self.cut_short:
            if note["member"] == member and note["begun"] <= min(run.begun, until) and note["at"] >= since:
                yield "cut short"

    def was_deposed(self, before, run):
        """Whether the leader before may have lost its lease before it could commit. A machine with too much to do is enough."""
        # Nothing is committed while no broker tells whether the topic is the same.
        latest = self.brokers.hold_up(before.ended, self.session_secs) + 2 * self.session_secs
        leader = self.leaders.get((self.seat, before.term))
        return run.term > before.term and any(
            before.begun <= at <= min(run.begun, latest) and leader in (None, member) for at, member in self.lost
        )


def seldom_twice(history, fences):
    """6: nothing that was committed comes again. Of the rest a new leader repeats one batch at most, and none if the one before
    could feel no fault and had lost no lease; a leader repeats nothing.
    """
    for seat in seats(history):
        yield from committed_again(seat, history.runs_of(seat), fences.reigns.get(seat, ()))
        reached, before, excuses = 0, None, Excuses(history, fences, seat)
        for run in (run for run in history.runs_of(seat) if run.is_done):
            twice = reached - run.first
            if twice > 0 and (twice > history.settings.batch_size or not excuses.holds(run, before)):
                why = "of a new leader" if run.term != before.term else "of the same leader"
                yield Violation(6, f"{seat}: run {run.run} {why} repeats {twice} records from {run.first}", run.begun)
            reached, before = max(reached, run.last + 1), run


def committed_again(seat, runs, reigns):
    commits = [(commit.at + CLOCK_SECS, commit.offset, reign.term) for reign in reigns for commit in reign.commits]
    for run in runs:
        count = bisect.bisect(commits, run.begun, key=lambda commit: commit[0])
        _, committed, term = commits[count - 1] if count else (0, 0, 0)
        # What a leader does that is none any more is for point 7.
        if run.first < committed and run.term >= term:
            yield Violation(6, f"{seat}: run {run.run} began at {run.first} when {committed} was committed", run.begun)


def duplicates(history):
    """How many records were done more than once, by seat."""
    found = {}
    for seat in seats(history):
        done = [run for run in history.runs_of(seat) if run.is_done]
        distinct, reached = 0, 0
        for first, last in sorted((run.first, run.last) for run in done):
            distinct += max(0, last + 1 - max(first, reached))
            reached = max(reached, last + 1)
        found[seat] = sum(run.last + 1 - run.first for run in done) - distinct
    return found

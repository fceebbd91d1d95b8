"""Whether the handlers got all records, in their order, seldom twice, and one run at a time."""

import bisect
import heapq

from faults import of_brokers
from history import Seat
from history import Violation

# A run's end is written down before ksync can know of it; ZooKeeper's clock has milliseconds.
CLOCK_SECS = 0.002
# What a process that was stopped needs after it wakes to end its handler.
WAKING_SECS = 1.5
CLEAN = ("terminate", "rolling restart", "writers killed", "broker killed", "broker stopped", "store away", "clock jumps",
         "clock strobes")


def seats(history):
    return [Seat(name, number) for name in history.names() for number in range(history.settings.partitions)]


def complete_and_in_order(history, fences, messages):
    """4: an offset passes only what was done; a run begins where all before it is done; bytes are as written."""
    for holes in history.holes:
        yield Violation(4, f"a batch of {holes['name']}/{holes['partition']} had holes: {holes['offsets']}", holes["at"])
    for seat in seats(history):
        log = history.instant[seat.partition]
        runs = history.runs_of(seat)
        for run in runs:
            if run.is_done and (run.last >= len(log) or run.sum != log.sum(run.first, run.last)):
                text = f"{seat}: run {run.run} got other bytes than the topic has at offsets {run.first} to {run.last}"
                yield Violation(4, text, run.begun)
        commits = fences.commits(seat)
        yield from passed_only_what_was_done(seat, runs, commits)
        yield from contiguous_in_a_term(seat, runs)
        if not commits or commits[-1].offset != len(log):
            reached = commits[-1].offset if commits else None
            yield Violation(4, f"{seat}: committed {reached} of {len(log)} records in the end", history.ended)
    yield from sent_on_before_the_commit(history, fences, messages)
    yield from halted(history)


def halted(history):
    for note in history.noted("halts"):
        topic, due, given, committed = (note[name] for name in ("topic", "due", "given", "committed"))
        if given != list(range(due)) or committed != due or not note["has_halted"]:
            halt = "did not halt" if not note["has_halted"] else "halted"
            text = f"{topic}: {halt}; the handler was given {len(given)} records and {committed} were committed"
            yield Violation(4, f"{text}, of {due} that could be", note["at"])


def passed_only_what_was_done(seat, runs, commits):
    events = [(run.ended, 0, run) for run in runs if run.is_done]
    events += [(run.begun, 1, run) for run in runs]
    events += [(commit.at + CLOCK_SECS, 2, commit) for commit in commits]
    passed, ahead = 0, []
    for at, kind, what in sorted(events, key=lambda event: event[:2]):
        if kind == 0:
            heapq.heappush(ahead, (what.first, what.last))
            while ahead and ahead[0][0] <= passed:
                passed = max(passed, heapq.heappop(ahead)[1] + 1)
        elif kind == 1 and what.first > passed:
            yield Violation(4, f"{seat}: run {what.run} began at {what.first} when only {passed} was reached", at)
        elif kind == 2 and what.offset > passed:
            yield Violation(4, f"{seat}: {what.offset} was committed when only {passed} was done", at)


def contiguous_in_a_term(seat, runs):
    reached = {}
    for run in runs:
        if run.first > reached.get(run.term, run.first):
            yield Violation(4, f"{seat}: run {run.run} of term {run.term} left out {reached[run.term]}", run.begun)
        if run.is_done:
            reached[run.term] = max(run.last + 1, reached.get(run.term, 0))


def sent_on_before_the_commit(history, fences, messages):
    delay = round(history.settings.delay_secs * 1000)
    for partition, log in enumerate(history.delayed):
        seat, passed, latest = Seat("delayer", partition), 0, 0
        commits = fences.commits(seat)
        for commit in commits:
            for key, millis in zip(zip(log.ops[passed:commit.offset], log.ids[passed:commit.offset]),
                                   log.millis[passed:commit.offset]):
                latest = max(latest, messages.sent_on(key, millis + delay) or 2**63)
            passed = max(passed, commit.offset)
            if latest > (commit.at + CLOCK_SECS) * 1000:
                yield Violation(4, f"{seat}: {commit.offset} was committed before all up to it was sent on", commit.at)
                break
        if not commits or commits[-1].offset != len(log):
            reached = commits[-1].offset if commits else None
            yield Violation(4, f"{seat}: committed {reached} of {len(log)} delay messages in the end", history.ended)


def seldom_twice(history, fences):
    """6: nothing that was committed comes again. Of the rest a new leader repeats one batch at most, and none if no fault was
    near and no lease was lost; a leader repeats nothing.
    """
    for seat in seats(history):
        yield from committed_again(seat, history.runs_of(seat), fences.reigns.get(seat, ()))
        reached, before = 0, None
        for run in (run for run in history.runs_of(seat) if run.is_done):
            twice = reached - run.first
            if twice > 0 and (twice > history.settings.batch_size or not is_excused(history, run, before)):
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


def is_excused(history, run, before):
    # Whoever did the records before may have been hit long ago: without a broker nobody begins anew.
    since = min(before.ended, run.begun - 3 * history.settings.session_secs)
    is_new = run.term != before.term
    near = [
        fault.kind for fault in history.faults
        if fault.begun <= run.begun and fault.healed >= since and fault.hits(run.seat.name)
    ]
    if is_new:
        return any(kind not in CLEAN for kind in near) or was_deposed(history, before, run)
    # It had written down that all was done, and did not live to say so.
    return any(kind in ("handlers killed", "handler stopped") for kind in near)


def was_deposed(history, before, run):
    """Whether the leader before may have lost its lease before it could commit. A machine with too much to do is enough."""
    session_secs = history.settings.session_secs
    # Nothing is committed while no broker tells whether the topic is the same.
    latest = of_brokers(history).hold_up(before.ended, session_secs) + 2 * session_secs
    lost = history.lost_by_load(run.seat)
    return run.term > before.term and any(before.begun <= at <= min(run.begun, latest) for at in lost)


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


def one_at_a_time(history, fences):
    """7: two runs of a seat are alive together only where a process was stopped; and the store lets no older one in."""
    for run in history.runs:
        if run.beside and not in_a_stop(history, run):
            text = f"{run.seat}: run {run.run} began beside {run.beside}, and nobody was stopped"
            yield Violation(7, text, run.begun)
        gone = fences.gone.get((run.seat, run.term))
        if run.term not in fences.terms.get(run.seat, ()):
            yield Violation(7, f"{run.seat}: run {run.run} has term {run.term}, which no candidate had", run.begun)
        elif gone and run.begun > gone + WAKING_SECS and not in_a_stop(history, run):
            text = f"run {run.run} of term {run.term} began {run.begun - gone:.1f} s after its candidate was gone"
            yield Violation(7, f"{run.seat}: {text}", run.begun)
    highest = {}
    for seat, term, first, last in history.accepted:
        if term < highest.get(seat, 0):
            text = f"{seat}: the store took offsets {first} to {last} of term {term} after term {highest[seat]}"
            yield Violation(7, text, history.ended)
        highest[seat] = max(term, highest.get(seat, 0))


def in_a_stop(history, run):
    return any(
        fault.kind == "stop" and fault.begun <= run.begun <= fault.healed + WAKING_SECS
        and fault.victims[0].startswith(run.seat.name)
        for fault in history.faults
    )

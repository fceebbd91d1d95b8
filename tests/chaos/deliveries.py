"""Whether the handlers got all records, in their order, and one run at a time."""

import heapq

from faults import stood_still
from history import Seat
from history import Violation

# A run's end is written down before ksync can know of it; ZooKeeper's clock has milliseconds.
CLOCK_SECS = 0.002
# What a process that was stopped needs after it wakes to end its handler; and one that was not, by when it has to.
WAKING_SECS = 1.5
ENDING_SECS = 0.5


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


def one_at_a_time(history, fences):
    """7: two runs of a seat are alive together only where a process was stopped; and the store lets no older one in."""
    terms = {run.run: run.term for run in history.runs}
    for run in history.runs:
        if run.beside and not in_a_stop(history, run, run.term, terms.get(run.beside)):
            text = f"{run.seat}: run {run.run} began beside {run.beside}, and nobody was stopped"
            yield Violation(7, text, run.begun)
        gone = fences.gone.get((run.seat, run.term))
        if run.term not in fences.terms.get(run.seat, ()):
            yield Violation(7, f"{run.seat}: run {run.run} has term {run.term}, which no candidate had", run.begun)
        elif gone and run.begun > gone + ending_secs(history, run) and not in_a_stop(history, run, run.term):
            text = f"run {run.run} of term {run.term} began {run.begun - gone:.1f} s after its candidate was gone"
            yield Violation(7, f"{run.seat}: {text}", run.begun)
    highest = {}
    for seat, term, first, last in history.accepted:
        if term < highest.get(seat, 0):
            text = f"{seat}: the store took offsets {first} to {last} of term {term} after term {highest[seat]}"
            yield Violation(7, text, history.ended)
        highest[seat] = max(term, highest.get(seat, 0))


def ending_secs(history, run):
    return WAKING_SECS if stood_still(history, run.begun - WAKING_SECS, run.begun) else ENDING_SECS


def in_a_stop(history, run, *terms):
    """Whether the process of one of these terms was stopped when the run began, or had just woken."""
    members = {history.leaders.get((run.seat, term)) for term in terms}
    return any(
        fault.kind == "stop" and fault.begun <= run.begun <= fault.healed + WAKING_SECS
        and any(fault.hits(run.seat.name, member) for member in members)
        for fault in history.faults
    )

"""What a run has shown, for a person."""

from collections import Counter

import growth
from around import around

MOST_VIOLATIONS = 10


def report(seed, history, verdict):
    """The lines."""
    kinds = Counter(fault.kind for fault in history.faults)
    records = [sum(map(len, logs)) for logs in (history.instant, history.delayed)]
    ops = history.ops.values()
    outcomes = Counter(run.outcome or "killed" for run in history.runs)
    seconds, seat, _ = verdict.longest_healthy_gap
    over_all, seat_over_all, _ = verdict.longest_gap
    lost, needless, healthy = verdict.lost_leases
    late, watched = verdict.judged
    yield f"seed {seed}"
    yield f"faults: {sum(kinds.values())}: {listed(kinds)}"
    yield f"messages: {sum(records):,} ({records[0]:,} instant, {records[1]:,} delayed)"
    committed = sum(op.committed is not None for op in ops)
    yield f"changes: {len(history.changes):,} in {committed:,} of {len(ops):,} transactions"
    yield f"handler runs: {listed(outcomes)}"
    yield f"leaders: {verdict.terms} terms"
    yield f"leases lost: {lost}, {needless} of them with no fault near that ends one, {healthy} while all was well"
    twice = verdict.duplicates.values()
    yield f"duplicates: {sum(twice):,} records in {sum(map(bool, twice))} seats"
    yield f"longest gap: {seconds:.1f} s ({seat}) while all was well, {over_all:.1f} s ({seat_over_all}) over all"
    yield f"judged while all was well: {late:,} delay messages by point 8, {watched:,.0f} s of all seats by point 9"
    yield from growth.lines(history)
    yield f"violations: {len(verdict.violations)}"
    points = Counter(violation.point for violation in verdict.violations)
    shown = Counter()
    for violation in verdict.violations:
        shown[violation.point] += 1
        if shown[violation.point] <= MOST_VIOLATIONS:
            yield f"  point {violation.point}: {violation.text}"
            yield from (f"      {line}" for line in around(history, violation))
    for point, count in sorted(points.items()):
        if count > MOST_VIOLATIONS:
            yield f"  point {point}: {count - MOST_VIOLATIONS} more"


def listed(counts):
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or "none"

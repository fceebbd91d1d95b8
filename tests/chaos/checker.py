"""The ten points that must hold of a run. Reads nothing but its History."""

import dataclasses

from deliveries import complete_and_in_order
from deliveries import one_at_a_time
from duplicates import duplicates
from duplicates import seldom_twice
from fences import Fences
from fences import fenced
from forwards import Forwards
from forwards import forwarded_seldom_twice
from growth import no_growth
from health import goes_on
from health import longest_gap
from health import no_leaks
from health import watched_secs
from lateness import Lateness
from lateness import few_late
from leases import losses
from leases import lost_by_mistake
from leases import seldom_lost
from messages import Messages
from messages import in_the_log
from messages import not_early
from secondary import convergence
from secondary import no_lost_update


@dataclasses.dataclass
class Verdict:
    violations: list
    duplicates: dict
    longest_healthy_gap: tuple
    longest_gap: tuple
    terms: int
    lost_leases: tuple
    # Messages that point 8 has looked at for being late, seconds of seats that point 9 has.
    judged: tuple


def check(history):
    fences, messages = Fences(history.txns), Messages(history)
    forwards, lateness = Forwards(history, fences, messages), Lateness(history, messages)
    violations = [
        *convergence(history),
        *no_lost_update(history),
        *in_the_log(history, messages),
        *complete_and_in_order(history, fences, messages),
        *fenced(history, fences),
        *seldom_twice(history, fences),
        *forwarded_seldom_twice(history, fences, forwards),
        *lost_by_mistake(history),
        *seldom_lost(history),
        *one_at_a_time(history, fences),
        *not_early(history, messages),
        *few_late(history, lateness),
        *goes_on(history, fences),
        *no_leaks(history),
        *no_growth(history),
    ]
    return Verdict(
        violations,
        {**duplicates(history), **forwards.duplicates()},
        longest_gap(history, fences),
        longest_gap(history, fences, healthy_only=False),
        sum(len(reigns) for reigns in fences.reigns.values()),
        losses(history),
        (len(lateness.millis), watched_secs(history)),
    )

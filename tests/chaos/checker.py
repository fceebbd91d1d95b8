"""The ten points that must hold of a run. Reads nothing but its History."""

import dataclasses

from deliveries import complete_and_in_order
from deliveries import duplicates
from deliveries import one_at_a_time
from deliveries import seldom_twice
from fences import Fences
from fences import fenced
from forwards import Forwards
from forwards import forwarded_seldom_twice
from growth import no_growth
from health import goes_on
from health import longest_gap
from health import losses
from health import lost_by_mistake
from health import no_leaks
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


def check(history):
    fences, messages = Fences(history.txns), Messages(history)
    forwards = Forwards(history, fences, messages)
    violations = [
        *convergence(history),
        *no_lost_update(history),
        *in_the_log(history, messages),
        *complete_and_in_order(history, fences, messages),
        *fenced(history, fences),
        *seldom_twice(history, fences),
        *forwarded_seldom_twice(history, fences, forwards),
        *lost_by_mistake(history),
        *one_at_a_time(history, fences),
        *not_early(history, messages),
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
    )

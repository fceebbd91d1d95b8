"""Whether leases are lost for nothing."""

from deliveries import CLOCK_SECS
from faults import stood_still
from health import all_seats
from history import CLOSED
from history import Violation

# These end leases of the processes that they hit; all that hit ZooKeeper may end any.
ENDS_LEASES = ("stop", "cut", "swallow replies", "swallow all", "store away and cut")
# While all is well a seat may lose one in so long, and one besides.
WELL_SECS = 600


def losses(history):
    """How many leases were lost: in all, with no fault near that ends one, and while nothing was broken."""
    return len(history.lost_leases), len(needless(history)), len(lost_while_well(history))


def needless(history):
    return [loss for loss in history.lost_leases if not has_cause(history, loss)]


def lost_while_well(history):
    spans = history.healthy()
    return [loss for loss in needless(history) if any(begin <= loss.at <= end for begin, end in spans)]


def has_cause(history, loss):
    return any(
        fault.begun <= loss.at <= fault.healed + history.settings.session_secs
        and (fault.kind.startswith("zookeeper") or fault.kind in ENDS_LEASES and loss.member in fault.victims)
        for fault in history.faults
    )


def lost_by_mistake(history):
    """6: no lease is lost but for what a machine with too much to do explains, or to a process that is ending.

    Whom a newer leader has followed is told that its candidate is gone: ZooKeeper looks for that first.
    """
    for loss in history.lost_leases:
        if not loss.is_by_load and not (loss.why == CLOSED and is_ending(history, loss)):
            yield Violation(6, f"{loss.seat}: {loss.member} has lost its lease: {loss.why}", loss.at)


def seldom_lost(history):
    """6: while all is well hardly any is lost, but where the machine stood still, which takes all of them."""
    session_secs = history.settings.session_secs
    found = [loss for loss in lost_while_well(history) if not stood_still(history, loss.at - session_secs, loss.at)]
    secs = sum(end - begin for begin, end in history.healthy())
    if len(found) > len(all_seats(history)) * (1 + secs / WELL_SECS):
        text = f"{len(found)} leases were lost in {secs:.0f} s in which all was well, the first of {found[0].seat}"
        yield Violation(6, f"{text}: {found[0].why}", found[0].at)


def is_ending(history, loss):
    """Whether the process was asked to: in the end all are."""
    return loss.at >= history.ended or any(
        note["member"] == loss.member and note["begun"] - CLOCK_SECS <= loss.at <= note["at"]
        for note in history.noted("terminated")
    )

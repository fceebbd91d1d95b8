"""Whether delay messages are sent on in time where nothing holds them up."""

import bisect
import dataclasses
from array import array

from faults import stalls
from health import delayers
from history import Violation

LATE_SECS = 5
# A delayer has caught up once none of so long a time was later.
ON_TIME_SECS = 1
LEVEL_SECS = 5
# After an outage that takes as long as it has lasted, or so long: its writers catch up, too.
CATCH_UP_SECS = 60


class Lateness:
    """By how many milliseconds delay messages were late that were due while all was well, and could be in time."""

    def __init__(self, history, messages):
        self.millis, self.latest = array("q"), None
        stands = stalls(history)
        for seat in delayers(history):
            for late, due, offset in judged(history, messages, seat):
                if late > LATE_SECS * 1000 and stands.first(due / 1000, (due + late) / 1000) is not None:
                    continue
                self.millis.append(late)
                if self.latest is None or late > self.latest[0]:
                    self.latest = late, due, seat, offset


def judged(history, messages, seat):
    """(by how many milliseconds, due, offset) of each."""
    log, delay = history.delayed[seat.partition], round(history.settings.delay_secs * 1000)
    spans = list(well(history, seat))
    begins, latest = [span.begin for span in spans], 0
    for offset, (key, millis) in enumerate(zip(log.keys(), log.millis)):
        due, sent = millis + delay, messages.sent_on(key, millis + delay)
        # In their order: one that is there already may be its writer's.
        latest = max(latest, sent or due)
        at = bisect.bisect(begins, due / 1000) - 1
        # One that never came is told by point 3.
        if at >= 0 and sent and spans[at].counts(due / 1000, (latest - due) / 1000):
            yield latest - due, due, offset


def well(history, seat):
    """The spans in which all was well."""
    since = history.begun
    for begin, end in history.healthy(seat):
        catch_up_secs = max(CATCH_UP_SECS, begin - since) if begin > history.begun else 0
        yield Span(begin, end, begin + catch_up_secs)
        since = end


@dataclasses.dataclass
class Span:
    begin: float
    end: float
    # When the delayer has to have caught up, and whether it has.
    limit: float
    is_level: bool = False
    # Since when none was late.
    since: float = None

    def counts(self, due, late):
        """Whether a message is judged by this span: the next one that was due."""
        if late > ON_TIME_SECS:
            self.since = None
        elif self.since is None:
            self.since = due
        else:
            self.is_level = self.is_level or due - self.since >= LEVEL_SECS
        return (self.is_level or due >= self.limit) and due + LATE_SECS < self.end


def few_late(history, lateness):
    """8: of a thousand delay messages at most one is late while all is well."""
    late = sorted(lateness.millis)
    limit = late[len(late) * 999 // 1000] if late else 0
    if limit > LATE_SECS * 1000:
        millis, due, seat, offset = lateness.latest
        op, id = history.delayed[seat.partition].key(offset)
        text = f"of {len(late)} delay messages due while all was well one in a thousand was later than {limit / 1000:.1f} s"
        text += f"; the latest, that of {seat} at {offset} (record {id} of transaction {op})"
        yield Violation(8, f"{text}, was due at {due / 1000:.3f} and {millis / 1000:.1f} s late", due / 1000)

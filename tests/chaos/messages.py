"""Whether the messages are in the log: at the right time, each delay message sent on, none of them early."""

import bisect
from collections import Counter
from collections import defaultdict

from history import Violation

LATE_SECS = 5
# After a fault a delayer has to be elected, and to catch up.
RECOVERY_SECS = 15
# Until then messages may have to wait for a new leader.
BROKER_BACK_SECS = 5
# From the start of an action to the line by which it says so, on a busy machine.
STARTING_SECS = 0.5


class Messages:
    """When each change's messages were appended, by (transaction, record)."""

    def __init__(self, history):
        # Of the delay messages the first; how many there are besides, of actions that took long.
        self.delayed, self.again, self.instant = {}, Counter(), defaultdict(list)
        # Of those that were sent again, when last.
        self.renewed = {}
        for log in history.delayed:
            for key, millis in zip(log.keys(), log.millis):
                if self.delayed.setdefault(key, millis) != millis:
                    self.again[key] += 1
                    self.renewed[key] = max(millis, self.renewed.get(key, 0))
        for log in history.instant:
            for key, millis in zip(log.keys(), log.millis):
                self.instant[key].append(millis)

    def sent_on(self, key, due_millis):
        """The first instant message that may be this delay message, sent on."""
        return next((millis for millis in self.instant.get(key, ()) if millis >= due_millis), None)


def in_the_log(history, messages):
    """3: what was acknowledged is in the log, in the order delay message, commit, instant message."""
    before, after = Counter(), Counter()
    for (op, _), millis in messages.delayed.items():
        if op in history.ops and millis <= history.ops[op].begun * 1000:
            before[op] += 1
    for key, appended in messages.instant.items():
        # Each delay message is sent on, too.
        if len(appended) > 1 + messages.again[key]:
            after[key[0]] += 1
    for op in history.ops.values():
        if before[op.op] != op.rows:
            text = f"transaction {op.op} began with {before[op.op]} of its {op.rows} delay messages in the log"
            yield Violation(3, text, op.begun)
        if op.is_complete and after[op.op] != op.rows:
            text = f"ksync-stream ended well, but {after[op.op]} of {op.rows} instant messages of transaction {op.op}"
            yield Violation(3, f"{text} are in the log", op.begun)
    yield from all_sent_on(history, messages)
    yield from all_covered(history, messages)
    yield from in_one_partition(history)


def all_covered(history, messages):
    """No transaction may commit after all of its delay messages are sent on: should its writer die then, nobody is told."""
    delay, until = round(history.settings.delay_secs * 1000), {}
    for key, millis in messages.delayed.items():
        due = messages.renewed.get(key, millis) + delay
        until[key[0]] = min(due, until.get(key[0], due))
    for op in history.ops.values():
        late = op.committed and op.op in until and op.committed - until[op.op] / 1000
        if late and late > 0 and not brokers_were_away(history, op):
            text = f"transaction {op.op} committed {late:.1f} s after its last delay messages were due"
            yield Violation(3, text, op.committed)


def brokers_were_away(history, op):
    """So that an action which takes longer than half of the delay may not have had its delay messages sent again in time."""
    is_long = op.committed - op.begun > history.settings.delay_secs / 2 - STARTING_SECS
    return is_long and any(
        "broker" in fault.kind and fault.begun <= op.committed and op.begun <= fault.healed + BROKER_BACK_SECS
        for fault in history.faults
    )


def in_one_partition(history):
    """The order of a record's messages is that of their partition."""
    partitions, scattered = {}, set()
    for logs in (history.delayed, history.instant):
        for partition, log in enumerate(logs):
            for id in set(log.ids):
                if partitions.setdefault(id, partition) != partition:
                    scattered.add(id)
    if scattered:
        text = f"messages of {len(scattered)} records lie in several partitions, the first of them {min(scattered)}"
        yield Violation(3, text, history.ended)


def all_sent_on(history, messages):
    delay = round(history.settings.delay_secs * 1000)
    for partition, log in enumerate(history.delayed):
        missing = [
            offset for offset, (key, millis) in enumerate(zip(log.keys(), log.millis))
            if messages.sent_on(key, millis + delay) is None
        ]
        if missing:
            text = f"delayer/{partition}: {len(missing)} delay messages were not sent on, the first at {missing[0]}"
            yield Violation(3, text, log.millis[missing[0]] / 1000)


def not_early(history, messages):
    """8: no delay message is sent on early, few are late; an instant message comes after the commit, once."""
    delay = round(history.settings.delay_secs * 1000)
    for key, appended in messages.instant.items():
        if key not in messages.delayed:
            yield Violation(8, f"record {key[1]} of transaction {key[0]} has no delay message", appended[0] / 1000)
            continue
        early = [millis for millis in appended if millis < messages.delayed[key] + delay]
        op = history.ops.get(key[0])
        committed = op and op.committed
        if early and (not committed or early[0] < int(committed * 1000)):
            text = f"record {key[1]} of transaction {key[0]} was announced although it had not committed"
            yield Violation(8, f"{text}, {early[0] - messages.delayed[key]} ms after its delay message", early[0] / 1000)
        elif len(early) > 1:
            text = f"record {key[1]} of transaction {key[0]} was announced {len(early)} times within the delay"
            yield Violation(8, text, early[1] / 1000)
    yield from few_late(history, messages)


def few_late(history, messages):
    late, latest = [], None
    for one in lateness(history, messages):
        late.append(one[0])
        latest = max(one, latest or one)
    late.sort()
    limit = late[len(late) * 999 // 1000] if late else 0
    if limit > LATE_SECS * 1000:
        millis, due, partition, offset = latest
        op, id = history.delayed[partition].key(offset)
        text = f"of {len(late)} delay messages due while all was well one in a thousand was later than {limit / 1000:.1f} s"
        text += f"; the latest, that of delayer/{partition} at {offset} (record {id} of transaction {op})"
        yield Violation(8, f"{text}, was due at {due / 1000:.3f} and {millis / 1000:.1f} s late", due / 1000)


def lateness(history, messages):
    """Of each delay message that was due while nothing was broken: (by how many milliseconds, due, partition, offset)."""
    delay = round(history.settings.delay_secs * 1000)
    spans = history.healthy(RECOVERY_SECS)
    begins = [begin for begin, _ in spans]
    for partition, log in enumerate(history.delayed):
        for offset, (key, millis) in enumerate(zip(log.keys(), log.millis)):
            due = millis + delay
            at = bisect.bisect(begins, due / 1000) - 1
            if at >= 0 and due / 1000 + LATE_SECS < spans[at][1]:
                # One that never came is told by point 3.
                if sent := messages.sent_on(key, due):
                    yield sent - due, due, partition, offset

"""Whether the messages are in the log: at the right time, each delay message sent on, none of them early."""

import signal
from collections import Counter
from collections import defaultdict

from history import Violation

# Until then messages may have to wait for a new leader.
BROKER_BACK_SECS = 5
# From the start of an action to the line by which it says so, on a busy machine.
STARTING_SECS = 0.5
# Delay messages are sent again after half of the delay. Who stands still for 3 s then is late by as much.
RENEWING_SECS = 0.5
# How a ksync-stream may end: well, by its action, such that it may be tried again, killed.
ENDS = (0, 1, 75, -signal.SIGKILL)


class Messages:
    """When each change's messages were appended, by (transaction, record)."""

    def __init__(self, history):
        # Of the delay messages the first; how many there are besides, of actions that took long.
        self.delayed, self.again, self.instant = {}, Counter(), defaultdict(list)
        # Of those that were sent again, when last before the commit; transactions of which some were only after it.
        self.renewed, self.renewing = {}, set()
        for log in history.delayed:
            for key, millis in zip(log.keys(), log.millis):
                if key in self.delayed:
                    self.renew(history.ops.get(key[0]), key, millis)
                else:
                    self.delayed[key] = millis
        for log in history.instant:
            for key, millis in zip(log.keys(), log.millis):
                self.instant[key].append(millis)

    def renew(self, op, key, millis):
        self.again[key] += 1
        if op and op.committed and millis > op.committed * 1000:
            self.renewing.add(op.op)
        else:
            self.renewed[key] = max(millis, self.renewed.get(key, 0))

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
        op = history.ops.get(key[0])
        # Each delay message is sent on, too.
        if op and len(appended) > 1 + messages.again[key] and is_announced(op, appended):
            after[op.op] += 1
    for op in history.ops.values():
        if before[op.op] != op.rows:
            text = f"transaction {op.op} began with {before[op.op]} of its {op.rows} delay messages in the log"
            yield Violation(3, text, op.begun)
        if op.is_complete and after[op.op] != op.rows:
            text = f"ksync-stream ended well, but {after[op.op]} of {op.rows} instant messages of transaction {op.op}"
            yield Violation(3, f"{text} are in the log", op.begun)
    yield from all_written(history)
    yield from all_sent_on(history, messages)
    yield from all_covered(history, messages)
    yield from in_one_partition(history)


def is_announced(op, appended):
    """Whether one of a record's instant messages came when its ksync-stream was at that."""
    return op.committed and any(int(op.committed * 1000) <= millis <= op.ended * 1000 for millis in appended)


def all_written(history):
    """A ksync-stream that ended well has made a transaction of each chunk that it was given, with all of its rows."""
    for note in history.noted("wrote"):
        ops = [history.ops.get(note["first"] + number) for number in range(len(note["plan"]))]
        done = sum(op.rows for op in ops if op and op.committed)
        where = f"the ksync-stream of transaction {note['first']}"
        if note["status"] not in ENDS:
            yield Violation(3, f"{where} ended with status {note['status']}", note["at"])
        elif note["status"] == 0 and any(not op or not op.committed or op.rows != note["rows"] for op in ops):
            text = f"{where} ended well with {done} of {note['rows'] * len(ops)} rows committed"
            yield Violation(3, text, note["at"])


def all_covered(history, messages):
    """No transaction may commit after all of its delay messages are sent on: should its writer die then, nobody is told."""
    delay, until = round(history.settings.delay_secs * 1000), {}
    for key, millis in messages.delayed.items():
        due = messages.renewed.get(key, millis) + delay
        until[key[0]] = min(due, until.get(key[0], due))
    for op in history.ops.values():
        if not op.committed or op.op not in until:
            continue
        late = op.committed - until[op.op] / 1000
        if late > (RENEWING_SECS if op.op in messages.renewing else 0) and not brokers_were_away(history, op):
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
    """8: no delay message is sent on early; an instant message comes after the commit, once."""
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

"""What the processes of ksync have said in their logs, by the right clock."""

import re
from datetime import datetime
from datetime import timezone

from clock import right_times
from history import Loss
from history import Seat

LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z (.*)")
# Whoever gives its lease up says "handed over", and whoever halts keeps it.
LOST = re.compile(r"ksync-\w+ warn: chaos(?:-delay)?/(\d+) as (\w+): no longer leading: (.*); queueing again")
LEADS = re.compile(r"ksync-\w+ info: chaos(?:-delay)?/(\d+) as (\w+): leading from offset \d+, term (\d+)")


def logs(history):
    """(member, file) of each."""
    for file in sorted(history.logs.glob("*.log")) if history.logs else ():
        yield "writers" if file.stem == "streams" else file.stem, file


def lines(history, member, file):
    """(when, text)."""
    if file not in history.log_lines:
        settings = [(note["at"], note["ahead_secs"]) for note in history.noted("clock") if note["of"] == member]
        found = [line.groups() for line in map(LINE.match, file.read_text(errors="replace").splitlines()) if line]
        shown = [datetime.fromisoformat(time).replace(tzinfo=timezone.utc).timestamp() for time, _ in found]
        right = right_times(shown, [(0.0, 0.0), *settings])
        history.log_lines[file] = list(zip(right, (text for _, text in found)))
    return history.log_lines[file]


def lost_leases(history):
    found = []
    for member, file in logs(history):
        for at, text in lines(history, member, file):
            if told := LOST.match(text):
                found.append(Loss(Seat(told[2], int(told[1])), at, member, told[3]))
    return sorted(found, key=lambda loss: loss.at)


def leaders(history):
    """Which process it was that led, by seat and term."""
    return {
        (Seat(told[2], int(told[1])), int(told[3])): member
        for member, file in logs(history) for _, text in lines(history, member, file) if (told := LEADS.match(text))
    }

"""When ksync-consume committed what, as the log of ksync-consume -v tells it: so start and end of a run can be left out."""

import dataclasses
import re
import tempfile
from datetime import datetime

from pipes import run
from programs import Failure

COMMIT = re.compile(r"(\S+)Z ksync-consume debug: \S+/(\d+) .*: committed offset (\d+)$")


@dataclasses.dataclass
class Commit:
    # When it was answered, in seconds since 1970.
    time: float
    partition: int
    offset: int


def commits(lines):
    for line in lines:
        if found := COMMIT.match(line):
            time = datetime.fromisoformat(f"{found[1]}+00:00").timestamp()
            yield Commit(time, int(found[2]), int(found[3]))


def run_to(count, command):
    """Runs ksync-consume -v on one partition until it ends; gives its commits, of which the last is at `count`."""
    with tempfile.TemporaryFile("w+") as log:
        run(command, log=log)
        log.seek(0)
        done = list(commits(log))
    if not done or done[-1].offset != count:
        raise Failure(f"the last commit in the log is {done[-1:]}, not at offset {count}")
    return done


def seconds_each(count, command):
    """What a record takes, from the first commit to the last."""
    first, *others = run_to(count, command)
    if not others:
        raise Failure("there was but one commit; try more --records")
    last = others[-1]
    return (last.time - first.time) / (last.offset - first.offset)

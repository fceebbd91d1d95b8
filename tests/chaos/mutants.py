"""The mistakes of src/mutants.rs, and what the checker has to find of each: one that finds nothing is worth nothing."""

import dataclasses
import shutil
import subprocess
import time

from checker import check
from load import load
from programs import Failure
from programs import PROJECT
from run import Profile
from run import run
from run import say

# How often it is tried, each time with another seed: some show only where a fault meets them.
TRIES = 4
PROFILE = Profile(faults=10, messages=15_000, minutes=1.5, load_secs=6, batch_size=500, most_rows=500, settle_secs=30)


@dataclasses.dataclass(frozen=True)
class Mutant:
    # Of the checker: one of these has to be violated.
    points: frozenset
    # The faults without which it does nothing wrong; all where there are none.
    kinds: tuple = PROFILE.kinds


ALL = {
    "CommitsFirst": Mutant(frozenset({4})),
    "CommitsLast": Mutant(frozenset({4})),
    "CommitsPastNext": Mutant(frozenset({4})),
    "IgnoresStatus": Mutant(frozenset({4})),
    "IgnoresSignal": Mutant(frozenset({4})),
    "CommitsUnfenced": Mutant(frozenset({5})),
    "WorksOnDisconnected": Mutant(frozenset({7}), ("cut", "store away", "swallow all")),
    "JumpsToLatest": Mutant(frozenset({4})),
    "DropsOnQueueFull": Mutant(frozenset({3})),
    "IgnoresDeliveryErrors": Mutant(frozenset({3})),
    "ExitsUnflushed": Mutant(frozenset({3})),
    "SendsInstantOnly": Mutant(frozenset({3, 8})),
    "BelievesPayload": Mutant(frozenset({8}), ("broker stopped",)),
    "SkipsInvalid": Mutant(frozenset({4})),
    "LeavesGrandchildren": Mutant(frozenset({7, 10})),
    "ParsesPayload": Mutant(frozenset({4})),
    "AcceptsUnread": Mutant(frozenset({4})),
    "IgnoresTopicId": Mutant(frozenset({4})),
    "IgnoresKey": Mutant(frozenset({3})),
    "RenewsNothing": Mutant(frozenset({3}), ("kill", "terminate")),
    "CommitsAtStop": Mutant(frozenset({4}), ("rolling restart", "terminate")),
    "BeginsBefore": Mutant(frozenset({6}), ("kill", "terminate")),
    "CommitsSeldom": Mutant(frozenset({6}), ("kill",)),
}


def build():
    """A folder with the tools that can be mutants. Never that of the release, even if this is broken off."""
    target = PROJECT / "target" / "mutants"
    command = ["cargo", "build", "--release", "--locked", "--bins", "--features", "mutants", "--target-dir", target]
    if subprocess.run(command, cwd=PROJECT).returncode != 0:
        raise Failure("cannot build the mutants")
    return target / "release"


def all_caught(names, folder, binaries, seed):
    """Whether each of these is found; all where none is named. Of one that is not, the last evidence stays."""
    missed = []
    for name in names or ALL:
        begun = time.monotonic()
        caught = any(is_caught(name, folder / name, binaries, seed + number) for number in range(TRIES))
        say(f"{name}: {'caught' if caught else 'NOT caught'} after {time.monotonic() - begun:.0f} s")
        if caught:
            shutil.rmtree(folder / name)
        else:
            missed.append(name)
    total = len(names or ALL)
    print(f"mutants: {total - len(missed)} of {total} caught; not: {', '.join(missed) or 'none'}")
    return not missed


def is_caught(name, folder, binaries, seed):
    mutant = ALL[name]
    say(f"{name}, seed {seed}")
    try:
        run(folder, binaries, seed, dataclasses.replace(PROFILE, kinds=mutant.kinds), name)
    except Failure as failure:
        # Of the servers: there is nothing to be checked.
        say(failure)
        return False
    for violation in check(load(folder / "history")).violations:
        if violation.point in mutant.points:
            say(f"{name}: point {violation.point}: {violation.text}")
            return True
    return False

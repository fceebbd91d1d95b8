"""The mistakes of src/mutants.rs, and what the checker has to find of each: one that finds nothing is worth nothing."""

import dataclasses
import re
import shutil
import subprocess
import time
import traceback

from checker import check
from halts import FIRST
from halts import MORE
from load import load
from programs import Failure
from programs import PROJECT
from run import Profile
from run import run
from run import say

# How often it is tried, each time with another seed: some show only where a fault meets them.
TRIES = 4
PROFILE = Profile(faults=10, messages=15_000, minutes=1.5, load_secs=6, batch_size=500, most_rows=500, settle_secs=30)
# What the checker says of an offset that was committed too early, and of messages that are not there.
UNDONE = "was committed when only .* was done"
MISSING = "delay messages in the log|instant messages of transaction"
# Of a consumer that has to halt after the first records.
READ_ON = f"did not halt; the handler was given {FIRST + MORE} records"


@dataclasses.dataclass(frozen=True)
class Mutant:
    # Of the checker: one of these has to be violated.
    points: frozenset
    # By a text that has this in it: no other trouble of a run may stand for the mistake.
    pattern: str
    # With the faults without which it does nothing wrong.
    profile: Profile = PROFILE

    def found(self, violations):
        """The violation that shows it, if there is one."""
        found = (one for one in violations if one.point in self.points and re.search(self.pattern, one.text))
        return next(found, None)


def mutant(points, pattern, *kinds, **other):
    profile = dataclasses.replace(PROFILE, kinds=kinds or PROFILE.kinds, **other)
    return Mutant(frozenset(points), pattern, profile)


ALL = {
    "CommitsFirst": mutant({4}, UNDONE),
    "CommitsLast": mutant({4}, f"and {FIRST - 1} were committed, of {FIRST} that could be"),
    "CommitsPastNext": mutant({4}, UNDONE),
    "IgnoresStatus": mutant({4}, UNDONE),
    "IgnoresSignal": mutant({4}, UNDONE),
    "CommitsUnfenced": mutant({5}, "written by another than the leader"),
    "WorksOnDisconnected": mutant({7}, "after its candidate was gone", "store away and cut", faults=4, mean_secs=6),
    "JumpsToLatest": mutant({4}, "chaos-expired: did not halt"),
    "DropsOnQueueFull": mutant({3}, MISSING),
    "IgnoresDeliveryErrors": mutant({3}, MISSING),
    "ExitsUnflushed": mutant({3}, "instant messages of transaction"),
    "SendsInstantOnly": mutant({3, 8}, "delay messages in the log|has no delay message"),
    "BelievesPayload": mutant({8}, "was announced", "broker stopped"),
    "SkipsInvalid": mutant({4}, f"chaos-not-json: {READ_ON}"),
    "LeavesGrandchildren": mutant({7, 10}, "began beside|left behind"),
    "ParsesPayload": mutant({4}, "got other bytes than the topic has"),
    "AcceptsUnread": mutant({4}, UNDONE),
    "IgnoresTopicId": mutant({4}, f"chaos-again: {READ_ON}"),
    "IgnoresKey": mutant({3}, "lie in several partitions"),
    "RenewsNothing": mutant({3}, "after its last delay messages were due", "kill", "terminate"),
    "CommitsAtStop": mutant({4}, UNDONE, "rolling restart", "terminate"),
    "BeginsBefore": mutant({6}, "began at .* when .* was committed", "kill", "terminate"),
    "CommitsSeldom": mutant({6}, "delay messages were sent on again", "kill", mean_secs=6),
    "NeverBeats": mutant({6}, "leases were lost in", "kill", mean_secs=6),
}


def build():
    """A folder with the tools that can be mutants. Never that of the release, even if this is broken off."""
    target = PROJECT / "target" / "mutants"
    command = ["cargo", "build", "--release", "--locked", "--bins", "--features", "mutants", "--target-dir", target]
    if subprocess.run(command, cwd=PROJECT).returncode != 0:
        raise Failure("cannot build the mutants")
    return target / "release"


def all_caught(names, folder, binaries, seed):
    """Whether each of these is found, and is not where there is none; all where none is named. Of one that is not, the last
    evidence stays.
    """
    names, missed = names or list(ALL), []
    for number, profile in enumerate(dict.fromkeys(ALL[name].profile for name in names)):
        some = [name for name in names if ALL[name].profile == profile]
        missed += shown_without(some, folder / f"none-{number}", binaries, seed)
        missed += [name for name in some if name not in missed and not is_caught(name, folder / name, binaries, seed)]
    print(f"mutants: {len(names) - len(missed)} of {len(names)} caught; not: {', '.join(missed) or 'none'}")
    return not missed


def shown_without(names, folder, binaries, seed):
    """Those of one profile that a run without any mistake shows as well, so that finding them would tell nothing."""
    tries = (violations_of(None, ALL[names[0]].profile, folder, binaries, seed + number) for number in range(TRIES))
    violations = next((found for found in tries if found is not None), None)
    if violations is None:
        say("no run without a mistake came to its end")
        return names
    shown = [name for name in names if tells(name, violations)]
    say(f"without a mistake: {len(violations)} violations, which are those of {', '.join(shown) or 'none'}")
    if not shown:
        shutil.rmtree(folder)
    return shown


def is_caught(name, folder, binaries, seed):
    begun = time.monotonic()
    caught = any(
        tells(name, violations_of(name, ALL[name].profile, folder, binaries, seed + number) or ())
        for number in range(TRIES)
    )
    say(f"{name}: {'caught' if caught else 'NOT caught'} after {time.monotonic() - begun:.0f} s")
    if caught:
        shutil.rmtree(folder)
    return caught


def tells(name, violations):
    found = ALL[name].found(violations)
    if found:
        say(f"{name}: point {found.point}: {found.text}")
    return found is not None


def violations_of(name, profile, folder, binaries, seed):
    """None where there is nothing to be checked."""
    say(f"{name or 'without a mistake'}, seed {seed}")
    try:
        run(folder, binaries, seed, profile, name)
        return check(load(folder / "history")).violations
    # Whatever breaks: those that are left are run all the same.
    except Exception:
        traceback.print_exc()
        return None

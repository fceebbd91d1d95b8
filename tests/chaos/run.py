"""One run: load, chaos, healing, rest; then the evidence is gathered."""

import dataclasses
import json
import os
import sys
import threading
import time

import load
from clock import clocks
from halts import halts
from members import Members
from members import SPARED
from members import strays
from nemesis import Nemesis
from nemesis import with_clocks
from programs import Failure
from proxy import Proxies
from schedule import KINDS
from schedule import schedule
from world import DELAY_SECS
from world import DELAY_TOPIC
from world import PARTITIONS
from world import SESSION_SECS
from world import TOPIC
from world import World
from world import eventually
from writers import Writers

# For the servers' start, the healing and the evidence.
AROUND_SECS = 100
# So long after the last fault was due those may still begin that had to wait for others of their kind.
LATE_SECS = 300
# How often it is looked at what the processes hold.
SAMPLE_SECS = 60
# By how much the times without faults make it longer.
PAUSES = 1.2
# After which tokio ends threads that have nothing to do, and a bit.
IDLE_SECS = 12
# A row is a delay message and two instant ones, that of its writer and that of the delayer.
MESSAGES_A_ROW = 3


@dataclasses.dataclass(frozen=True)
class Profile:
    faults: int
    messages: int
    minutes: float
    load_secs: float
    batch_size: int
    most_rows: int
    # Of the faults.
    kinds: tuple = tuple(KINDS)
    # Between two faults, at most.
    mean_secs: float = 3
    # Whether one process of each kind is neither killed nor restarted.
    spares: bool = False
    # From the last input on; then everything has to be done.
    settle_secs: float = 2 * DELAY_SECS + SESSION_SECS + 60


def soak(minutes):
    """1,000 messages a second, and about each half minute a fault."""
    return Profile(round(2 * minutes), round(60_000 * minutes), minutes, 20, 1000, 2000, mean_secs=30, spares=True)


PROFILES = {
    "quick": Profile(25, 60_000, 3, 8, 500, 1000),
    "full": Profile(1_000, 10_000_000, 75, 20, 1000, 2000),
    "soak": soak(120),
}


def run(folder, binaries, seed, profile, mutant=None):
    """Leaves the evidence in the folder `history` of `folder`, which is given back."""
    with World(folder, seed, profile.batch_size, mutant) as world:
        world.journal.add("settings", seed=seed, delay_secs=DELAY_SECS, session_secs=SESSION_SECS,
                          batch_size=profile.batch_size, partitions=PARTITIONS, load=os.getloadavg()[0],
                          spared=SPARED if profile.spares else ())
        members = Members(world, binaries, Proxies(), profile.spares)
        try:
            put_to_the_test(world, binaries, members, profile)
        finally:
            members.kill()
        say("gathers the evidence")
        load.gather(world)
    return world.history


def put_to_the_test(world, binaries, members, profile):
    chaos_secs = max(60 * profile.minutes - AROUND_SECS - profile.load_secs, 30)
    mean_secs = min(profile.mean_secs, chaos_secs / profile.faults / PAUSES)
    planned = schedule(world.seed, profile.faults, mean_secs, profile.kinds)
    (world.folder / "schedule.json").write_text(json.dumps([dataclasses.asdict(fault) for fault in planned], indent=0))
    world.clocks = clocks(with_clocks(planned), world.folder, world.journal)
    members.start()
    eventually("all partitions are led", 120, lambda: all_led(world))
    world.journal.add("begun")
    say(f"{profile.load_secs:.0f} s without faults, then {len(planned)} in {planned[-1].at_secs:.0f} s")
    flow_secs = profile.load_secs + planned[-1].at_secs
    writers = Writers(world, binaries, profile.messages / MESSAGES_A_ROW, flow_secs, profile.most_rows)
    try:
        time.sleep(profile.load_secs)
        members.measure("start")
        threading.Thread(target=members.sample, args=(SAMPLE_SECS,), daemon=True).start()
        Nemesis(world, members, writers).carry_out(planned, time.monotonic() + planned[-1].at_secs + LATE_SECS)
        say("heals everything")
        heal(world, members)
        eventually("all rows are written", 120, lambda: not writers.is_behind())
    finally:
        writers.end(60)
    say("the writers have ended; the rest has to happen by itself")
    rest(world, members, binaries, profile.settle_secs)


def heal(world, members):
    for file in world.history.glob("outage-*"):
        file.unlink(missing_ok=True)
    for clock in world.clocks.values():
        clock.set(0)
    members.heal()
    world.heal_servers()
    world.journal.add("all healed")


def rest(world, members, binaries, settle_secs):
    try:
        eventually("all messages are done", settle_secs, lambda: is_settled(world))
    except Failure as failure:
        # The checker finds what is missing.
        say(failure)
    world.journal.add("settled")
    idle_since = time.monotonic()
    halts(world, binaries)
    time.sleep(max(0, idle_since + IDLE_SECS - time.monotonic()))
    members.measure("end")
    members.end()
    # Those of a killed process are gone within 100 ms.
    time.sleep(0.5)
    world.journal.add("strays", found=strays(world))


def all_led(world):
    """Or have been: whoever leads first writes the offset where it begins."""
    seats = [(TOPIC, "index"), (TOPIC, "cache"), (DELAY_TOPIC, "delayer")]
    return all(None not in (world.offsets(topic, name) or [None]) for topic, name in seats)


def is_settled(world):
    """The delayer first: what it sends on the others have to do."""
    for topic, names in ((DELAY_TOPIC, ["delayer"]), (TOPIC, ["index", "cache"])):
        ends = world.ends(topic)
        if None in ends or any(world.offsets(topic, name) != ends for name in names):
            return False
    return True


def say(text):
    print(f"chaos: {text}", file=sys.stderr, flush=True)

"""Which fault comes when: made of the seed alone, and written down before the first one."""

import dataclasses
import random

# Weights, and from how many to how many seconds each one lasts.
KINDS = {
    "kill": (20, (0.2, 2)),
    "kill all": (4, (0.5, 2)),
    "stop": (15, (0.8, 12)),
    "terminate": (4, (0, 0)),
    "rolling restart": (1, (0, 0)),
    "cut": (5, (0.2, 12)),
    "swallow replies": (3, (0.2, 6)),
    "swallow all": (3, (0.5, 12)),
    "zookeeper leader killed": (5, (0.5, 4)),
    "zookeeper follower killed": (6, (0.5, 4)),
    "zookeeper stopped": (4, (1, 6)),
    "zookeeper quorum lost": (2, (2, 10)),
    "broker killed": (12, (0.5, 4)),
    "broker stopped": (6, (1, 10)),
    "handlers killed": (3, (0, 0)),
    "handler stopped": (2, (1, 8)),
    "store away": (3, (1, 6)),
    "writers killed": (2, (0, 0)),
    "clock jumps": (3, (1, 10)),
    "clock strobes": (2, (1, 6)),
}
# Only where they are asked for: with them each seed would have another schedule.
ON_DEMAND = {"store away and cut": (1, (10, 10))}


@dataclasses.dataclass
class Planned:
    at_secs: float
    kind: str
    # Chooses among those there are.
    victim: int
    secs: float


def schedule(seed, faults, mean_secs, kinds=tuple(KINDS)):
    """In epochs, each with a random subset of the kinds, sometimes with none: then everything can recover."""
    rng, known = random.Random(f"{seed} schedule"), KINDS | ON_DEMAND
    planned, now = [], 0.0
    while len(planned) < faults:
        epoch_end = now + rng.uniform(4, 10) * mean_secs
        active = sorted(rng.sample(kinds, rng.choice([0, *range(min(4, len(kinds)), len(kinds) + 1)])))
        if not active:
            now += min(epoch_end - now, 10)
            continue
        while now < epoch_end and len(planned) < faults:
            kind = rng.choices(active, [known[kind][0] for kind in active])[0]
            secs = round(rng.uniform(*known[kind][1]), 2)
            planned.append(Planned(round(now, 2), kind, rng.randrange(1 << 16), secs))
            now += min(rng.expovariate(1 / mean_secs), 3 * mean_secs)
    return planned

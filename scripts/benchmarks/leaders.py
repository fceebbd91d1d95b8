"""(h): what leading many partitions costs ZooKeeper: made-up leaders, which read nothing and commit now and then."""

import re
import subprocess
from pathlib import Path

from bench import say
from pipes import ENVIRONMENT
from programs import Failure

SECONDS = 20
# Partitions; the milliseconds between two commits of each, 0 for no pause; --commit-interval in milliseconds.
SETTINGS = [
    (1, 0, 0),
    (64, 0, 0),
    *((partitions, every, interval) for partitions in (64, 1_000, 10_000) for every, interval in ((1000, 0), (1000, 10_000))),
]
DONE = re.compile(r"(\d+) commits, 99 % within ([\d.]+) ms, (\d+) leases lost")


def leaders(bench):
    for servers in (bench.zookeeper, bench.zookeepers):
        count = servers.count(",") + 1
        title = f"(h) made-up leaders on {count} ZooKeeper server{'s' if count > 1 else ''}"
        print(f"\n{title:60} {'commits/s':>10}  {'99 % within':>11}  ZooKeeper CPU")
        for partitions, every, interval in SETTINGS:
            pause = f"one each {every / 1000:.0f} s" if every else "without a pause"
            name = f"{partitions:,} partition{'s' if partitions > 1 else ''}, {pause}"
            name += f", --commit-interval {interval / 1000:.0f}s" if interval else ""
            rate, milliseconds, share = measure(bench, servers, (partitions, SECONDS, every, interval))
            within = f"{milliseconds:.1f} ms" if not interval else "-"
            print(f"  {name:58} {rate:10,.0f}  {within:>11}  {share:4.0%} of a core", flush=True)


def measure(bench, servers, plan):
    """Commits a second, how long 99 % of them took at most, and how much of a core the servers took, all of them together."""
    say(f"leads {plan[0]:,} partitions for {plan[1]} s")
    command = [bench.examples["leaders"], f"{servers}/leaders{next(bench.numbers)}", *map(str, plan)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        process.stdout.readline()
        before = cpu_seconds(servers)
        done = DONE.search(process.stdout.read())
        taken = cpu_seconds(servers) - before
    if not done or int(done[3]):
        raise Failure(f"{command} lost leases or failed: {done}")
    return int(done[1]) / plan[1], float(done[2]), taken / plan[1]


def cpu_seconds(servers):
    """What those who listen there have used so far."""
    ports = {int(server.rpartition(":")[2]) for server in servers.split(",")}
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().split(b"\0")
            if b"org.apache.zookeeper.server.quorum.QuorumPeerMain" not in line:
                continue
            port = re.search(r"clientPort=(\d+)", Path(line[-2].decode()).read_text())
            if port and int(port[1]) in ports:
                times = (process / "stat").read_text().rpartition(")")[2].split()
                total += (int(times[11]) + int(times[12])) / 100
        except FileNotFoundError:
            continue  # it has ended
    return total

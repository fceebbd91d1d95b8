"""(g): the most memory that ksync-consume takes where something tempts it to take much."""

import itertools
import re
import tempfile

from bench import HANDLER
from bench import records
from bench import say
from commits import commits
from pipes import run

MEMORY_MIB = 64
MOST_MIB = MEMORY_MIB + 32
# For many partitions less is enough, and the process itself takes part of what is allowed.
LITTLE_MIB = 24
MOST_WITH_LITTLE_MIB = 64
# Half of it without any line break.
TALKS = """cat >/dev/null; head -c 500M /dev/zero | tr '\\0' x; echo; yes "$(printf %0999d 7)" | head -c 500M"""
LARGE = 8 << 20
PARTITIONS = 64
BAD = '{"id":"bad"}'
HALT = re.compile(r" halted/(\d+) .*: halted at offset 0:")
# Fails at what has the bad record in it; else grep has read it all.
FAILS = ["sh", "-c", f"! grep -F '{BAD}' >/dev/null"]


def memory(bench):
    halted_once = halted(bench)
    situations = [
        ("a handler writes 1 GB to stdout", MEMORY_MIB, MOST_MIB, talking(bench)),
        ("each record is of 8 MiB", MEMORY_MIB, MOST_MIB, large(bench)),
        (f"1 of {PARTITIONS} partitions is halted, {PARTITIONS - 1} have load", MEMORY_MIB, MOST_MIB, halted_once),
        (f"the same with {LITTLE_MIB}MiB", LITTLE_MIB, MOST_WITH_LITTLE_MIB, halted_once),
    ]
    runs = bench.options.runs
    print(f"\n{f'(g) ksync-consume --memory {MEMORY_MIB}MiB, the most of {runs} runs':60} {'RSS':>10}")
    for name, memory, most, once in situations:
        peaks = []
        for number in range(1, runs + 1):
            peaks.append(once(f"{memory}MiB").peak_kib / 1024)
            say(f"run {number}, {peaks[-1]:3.0f} MiB: (g) {name}")
        print(f"  {name:58} {max(peaks):6.0f} MiB", flush=True)
        text = f"(g) {name}: at most {most} MiB"
        judge = bench.hold_to if memory == LITTLE_MIB else bench.judge
        judge(text, f"{max(peaks):.0f} MiB", max(peaks) <= most)


def talking(bench):
    bench.pour("talk", 1, ['1|{"id":1}'])
    # Not quiet: what is not logged is not held either.
    return lambda memory: run(bench.consume("talk", ["sh", "-c", TALKS], "-e", "--memory", memory, log="-v"))


def large(bench):
    count = max(bench.options.records // 50_000, 5)
    text = "x" * (LARGE - len('{"text":""}'))
    record = f'{{"text":"{text}"}}'
    bench.pour("large", count, (f"{i}|{record}" for i in range(count)), settings=[("max.message.bytes", str(2 * LARGE))])
    return lambda memory: run(bench.consume("large", HANDLER, "-e", "--memory", memory))


def halted(bench):
    count = max(bench.options.records // 2, PARTITIONS * 100)
    good = records(count - 1, "wide")
    bench.pour("halted", count, itertools.chain([f"bad|{BAD}"], good), PARTITIONS)
    ends = bench.ends("halted", PARTITIONS)
    return lambda memory: run_halted(bench, ends, memory)


def run_halted(bench, ends, memory):
    """Runs until one partition has halted and all others are done."""
    with tempfile.NamedTemporaryFile("w+") as log, open(log.name) as news:
        offsets, halts = {}, set()

        def is_done():
            lines = news.readlines()
            offsets.update({commit.partition: commit.offset for commit in commits(lines)})
            halts.update(int(found[1]) for found in map(HALT.search, lines) if found)
            left = {partition for partition, end in enumerate(ends) if offsets.get(partition) != end}
            return halts and left == halts

        options = ["--isolate-after", "1", "--memory", memory]
        return run(bench.consume("halted", FAILS, *options, log="-v"), until=is_done, log=log)

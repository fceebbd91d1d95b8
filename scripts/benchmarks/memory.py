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
# Half of it without any line break.
TALKS = """cat >/dev/null; head -c 500M /dev/zero | tr '\\0' x; echo; yes "$(printf %0999d 7)" | head -c 500M"""
LARGE = 8 << 20
PARTITIONS = 64
BAD = '{"id":"bad"}'
HALT = re.compile(r" halted/(\d+) .*: halted at offset 0:")
# Fails at what has the bad record in it; else grep has read it all.
FAILS = ["sh", "-c", f"! grep -F '{BAD}' >/dev/null"]


def memory(bench):
    situations = {
        "a handler writes 1 GB to stdout": talking(bench),
        "each record is of 8 MiB": large(bench),
        f"1 of {PARTITIONS} partitions is halted, {PARTITIONS - 1} have load": halted(bench),
    }
    runs = bench.options.runs
    print(f"\n{f'(g) ksync-consume --memory {MEMORY_MIB}MiB, the most of {runs} runs':60} {'RSS':>10}")
    for name, once in situations.items():
        peaks = []
        for number in range(1, runs + 1):
            peaks.append(once().peak_kib / 1024)
            say(f"run {number}, {peaks[-1]:3.0f} MiB: (g) {name}")
        print(f"  {name:58} {max(peaks):6.0f} MiB", flush=True)
        text = f"(g) while {name}: at most {MOST_MIB} MiB"
        bench.judge(text, f"{max(peaks):.0f} MiB", max(peaks) <= MOST_MIB)


def consume(bench, topic, handler, *arguments, **log):
    return bench.consume(topic, handler, "--memory", f"{MEMORY_MIB}MiB", *arguments, **log)


def talking(bench):
    bench.pour("talk", 1, ['1|{"id":1}'])
    # Not quiet: what is not logged is not held either.
    return lambda: run(consume(bench, "talk", ["sh", "-c", TALKS], "-e", log="-v"))


def large(bench):
    count = max(bench.options.records // 50_000, 5)
    text = "x" * (LARGE - len('{"text":""}'))
    record = f'{{"text":"{text}"}}'
    bench.pour("large", count, (f"{i}|{record}" for i in range(count)), settings=[("max.message.bytes", str(2 * LARGE))])
    return lambda: run(consume(bench, "large", HANDLER, "-e"))


def halted(bench):
    count = max(bench.options.records // 2, PARTITIONS * 100)
    good = records(count - 1, "wide")
    bench.pour("halted", count, itertools.chain([f"bad|{BAD}"], good), PARTITIONS)
    ends = bench.ends("halted", PARTITIONS)
    return lambda: run_halted(bench, ends)


def run_halted(bench, ends):
    """Runs until one partition has halted and all others are done."""
    with tempfile.NamedTemporaryFile("w+") as log, open(log.name) as news:
        offsets, halts = {}, set()

        def is_done():
            lines = news.readlines()
            offsets.update({commit.partition: commit.offset for commit in commits(lines)})
            halts.update(int(found[1]) for found in map(HALT.search, lines) if found)
            left = {partition for partition, end in enumerate(ends) if offsets.get(partition) != end}
            return halts and left == halts

        return run(consume(bench, "halted", FAILS, "--isolate-after", "1", log="-v"), until=is_done, log=log)

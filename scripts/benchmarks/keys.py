"""(f): a handler that waits for a store, by many workers at once, in the order of each key."""

import random
import sys
import tempfile
from pathlib import Path

from bench import say
from commits import run_to

RECORDS = 10_000
KEYS = 1_000
MILLISECONDS = 2.5
WORKERS = 16
MOST_TIMES_IDEAL = 1.15
HANDLER = [sys.executable, Path(__file__).parent / "handlers" / "sleep.py", str(MILLISECONDS)]


def keys(bench):
    choice = random.Random(7)
    topics = {RECORDS: "keys", RECORDS // 10: "keys-tenth"}
    for count, topic in topics.items():
        bench.pour(topic, count, (f'{choice.randrange(KEYS)}|{{"id":{i}}}' for i in range(count)))
    by_key = f"ksync-consume --worker -j {WORKERS} --by-key"
    taken = []
    for number in range(1, bench.options.runs + 1):
        taken.append(work_time(bench, topics[RECORDS], RECORDS, "--worker", "-j", str(WORKERS), "--by-key"))
        say(f"run {number}, {taken[-1]:6.2f} s: {by_key}")
    tenth = RECORDS // 10
    alone = work_time(bench, topics[tenth], tenth, "--worker", "-j", "1") * RECORDS / tenth
    ideal = RECORDS * MILLISECONDS / 1000 / WORKERS
    title = f"(f) {RECORDS:,} records of {KEYS:,} keys in one partition, {MILLISECONDS} ms each"
    print(f"\n{title:60} {'seconds':>10}  times the ideal")
    rows = {
        by_key: min(taken),
        f"the ideal: all {WORKERS} workers at work all the time": ideal,
        f"ksync-consume --worker -j 1, {tenth:,} records, times 10": alone,
        "quoted, not measured here: Confluent's Parallel Consumer": 1.90,
    }
    for name, seconds in rows.items():
        print(f"  {name:58} {seconds:10.2f}  {seconds / ideal:.2f}", flush=True)
    ratio = min(taken) / ideal
    bench.judge(f"{title}: at most {MOST_TIMES_IDEAL} x the ideal", f"{ratio:.2f}", ratio <= MOST_TIMES_IDEAL)


def work_time(bench, topic, count, *arguments):
    """The seconds from when the first worker got its first record to when the last commit was answered."""
    with tempfile.TemporaryDirectory() as notes:
        done = run_to(count, bench.consume(topic, [*HANDLER, notes], "-e", *arguments, log="-v"))
        return done[-1].time - min(float(note.read_text()) for note in Path(notes).iterdir())

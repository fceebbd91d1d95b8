"""(e): a Python handler that parses each line, beside the same script that reads the same lines from a file."""

import sys
import tempfile
from pathlib import Path

from bench import records
from bench import say
from commits import seconds_each
from pipes import run

HANDLER = [sys.executable, Path(__file__).parent / "handlers" / "parse.py"]
WORKER = "ksync-consume --worker"
PIPED = "cat file | python3"
ALONE = "python3 < file"
LEAST_RATIO = 0.95


def parsing(bench):
    count = bench.options.records // 4
    bench.pour("parse", count, records(count, "wide"))
    title = f"(e) {count:,} records, payloads of 200 bytes, json.loads"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "lines")
        bench.lines("parse", file)

        def ksync(*arguments):
            return lambda: seconds_each(count, bench.consume("parse", HANDLER, "-e", *arguments, log="-v"))

        # Plain lines, without what ksync tells a worker in between: the least that this parsing costs, from a file and
        # through a pipe.
        def alone():
            with file.open() as lines:
                return each(run(HANDLER, stdin=lines))

        def piped():
            return each(run(["cat", file], HANDLER))

        def each(whole):
            return (whole.seconds - run(HANDLER).seconds) / count

        contenders = {
            WORKER: ksync("--worker"),
            "ksync-consume --batch-size 10000": ksync("--batch-size", "10000"),
            PIPED: piped,
            ALONE: alone,
        }
        taken = {name: [] for name in contenders}
        for number in range(1, bench.options.runs + 1):
            for name, contender in contenders.items():
                taken[name].append(contender())
                say(f"run {number}, {1 / taken[name][-1]:10,.0f} per second: {name}, {title}")
    alone_each = min(taken[ALONE])
    print(f"\n{title:60} {'per second':>10}  times {ALONE}")
    for name, seconds in taken.items():
        ratio = "" if name == ALONE else f"{alone_each / min(seconds):.2f}"
        print(f"  {name:58} {1 / min(seconds):10,.0f}  {ratio}".rstrip(), flush=True)
    ratio = alone_each / min(taken[WORKER])
    bench.hold_to(f"{title}: {WORKER} = {LEAST_RATIO} x {ALONE}", f"{ratio:.2f}", ratio >= LEAST_RATIO)

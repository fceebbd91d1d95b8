"""(d): what one process for each batch costs, beside a bare loop that starts the same command."""

import tempfile
from pathlib import Path

from bench import HANDLER
from bench import records
from bench import say
from commits import seconds_each
from pipes import run

# Of payloads of 200 bytes: about 100 KB of lines.
BATCH_SIZE = 320
MOST_MS_MORE = 1.0


def processes(bench):
    batches = max(bench.options.records // 2000, 10)
    count = batches * BATCH_SIZE
    bench.pour("batches", count, records(count, "wide"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "lines")
        bench.lines("batches", file)
        size = file.stat().st_size // batches
    title = f"(d) {batches:,} batches of {size / 1000:.0f} KB to {HANDLER[0]} -c '{HANDLER[2]}'"

    def ksync():
        options = ["-e", "--batch-size", str(BATCH_SIZE)]
        return seconds_each(count, bench.consume("batches", HANDLER, *options, log="-v")) * BATCH_SIZE

    def bare():
        return run([bench.examples["spawn"], str(batches), str(size), *HANDLER]).seconds / batches

    contenders = {f"ksync-consume --batch-size {BATCH_SIZE}": ksync, "spawn, write and wait, a bare loop": bare}
    taken = {name: [] for name in contenders}
    for number in range(1, bench.options.runs + 1):
        for name, contender in contenders.items():
            taken[name].append(contender() * 1000)
            say(f"run {number}, {taken[name][-1]:6.2f} ms: {name}, {title}")
    each, bare_each = (min(milliseconds) for milliseconds in taken.values())
    more = each - bare_each
    print(f"\n{title:60} {'ms a batch':>10}")
    for name, milliseconds in zip([*contenders, "more than the bare loop"], [each, bare_each, more]):
        print(f"  {name:58} {milliseconds:10.2f}", flush=True)
    bench.judge(f"{title}: at most {MOST_MS_MORE} ms more than a bare loop", f"{more:.2f} ms", more <= MOST_MS_MORE)

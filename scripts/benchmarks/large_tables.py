"""(k): whether a row of a large table takes longer than one of a small one, and how soon a stopped run goes on."""

import dataclasses
import itertools
import math
import tempfile
from pathlib import Path

from bench import say
from pipes import run
from tables import CHANGE
from tables import announce
from tables import change
from tables import make_table
from tables import stream_rows

# Rows, and how many runs over them: the shorter they are, the more they differ. What one row takes is the start.
SIZES = {1: 10, 100_000: 10, 1_000_000: 3, 10_000_000: 2}
LEAST_ROWS = 100_000
MOST_TIMES = 1.25
MOST_MIB = 64
# Where a run is stopped, in percent of its rows.
PLACES = (1, 50, 99)
# It comes there by about so many chunks, and is stopped exactly there, while it rests behind one of them.
CHUNKS = 25
REST = "500ms"
MOST_SECONDS = 1.0


def large_tables(bench):
    rows = max(bench.options.rows, LEAST_ROWS)
    sizes = [size for size in SIZES if size <= 10 * rows]
    for size in sizes:
        make_table(bench, table_of(size), size)
    compare(bench, "ids only", sizes, lambda size: announce(bench, table_of(size), size))
    compare(bench, "changed, 1,000 at a time", sizes, lambda size: change(bench, table_of(size)))
    resume(bench, rows)


def table_of(size):
    return f"rows_{size}"


def compare(bench, name, sizes, once):
    """What a row takes in each of the tables; `once` runs over one of them."""
    seconds, peaks = {}, {}
    for size in sizes:
        runs = [once(size) for _ in range(SIZES[size])]
        seconds[size], peaks[size] = min(done.seconds for done in runs), max(done.peak_kib for done in runs) / 1024
        say(f"{seconds[size]:6.2f} s, the fastest of {len(runs)} runs: (k) {size:,} rows, {name}")
    start = seconds.pop(1)
    each = {size: (whole - start) / size for size, whole in seconds.items()}
    title = f"(k) rows of Postgres, {name}"
    print(f"\n{title:60} {'per second':>10}  {'RSS':>12}  time of a row, in that of the smallest table")
    for size, taken in each.items():
        figures = f"{1 / taken:10,.0f}  {peaks[size]:8.0f} MiB  {taken / each[sizes[1]]:.2f}"
        print(f"  {f'{size:,} rows':58} {figures}", flush=True)
    print(f"  {'left out of these: a run over one row':58} {start:8.2f} s", flush=True)
    growth = max(larger / smaller for smaller, larger in itertools.combinations(each.values(), 2))
    text = f"{title}: a row takes at most {MOST_TIMES} x as long in a larger table as in a smaller one"
    bench.hold_to(text, f"{growth:.2f}", growth <= MOST_TIMES)
    peak = max(peaks.values())
    bench.hold_to(f"{title}: at most {MOST_MIB} MiB", f"{peak:.0f} MiB", peak <= MOST_MIB)


@dataclasses.dataclass
class Job:
    """What is stopped, and goes on."""

    name: str
    table: str
    # How many it announces in all.
    rows: int
    arguments: list
    done: int = 0

    def go_on(self, bench, count, statuses, *arguments):
        """The seconds until so many rows more are announced; it is asked to end then."""
        bench.renew_pair("resumed")
        command = stream_rows(bench, "resumed", self.table, "--chunk-time", "1h", *self.arguments, *arguments)
        done = run(command, until=lambda: bench.ends("resumed")[0] >= count, statuses=statuses)
        self.done += bench.ends("resumed")[0]
        return done.seconds

    def go_to(self, bench, place):
        """Goes on until so many rows are done, by chunks of one size."""
        left = place - self.done
        chunks = math.ceil(left * CHUNKS / self.rows)
        size = ["--chunk-size", str(math.ceil(left / chunks)), "--chunk-bytes", "1GiB"]
        self.go_on(bench, left, (75,), *size, "--pause", REST)


def resume(bench, rows):
    title = f"(k) {rows:,} rows of Postgres, until a resume announces"
    places = " ".join(f"{f'at {place} %':>10}" for place in PLACES)
    most = 0
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(bench, rows, Path(folder))
        print(f"\n{title:60} {places}")
        for job in jobs:
            seconds = [first_message(bench, job, place) for place in PLACES]
            print(f"  {job.name:58} {' '.join(f'{taken:8.2f} s' for taken in seconds)}", flush=True)
            most = max(most, *seconds)
    text = f"(k) a resume announces within {MOST_SECONDS:.0f} s, wherever the run before was stopped"
    bench.hold_to(text, f"{most:.2f} s", most <= MOST_SECONDS)


def make_jobs(bench, rows, folder):
    shelves = "(id - 1) / 1000 AS shelf, (id - 1) % 1000 AS number"
    make_table(bench, "stock", rows, "id::bigint, id % 10 AS price, 'product ' || id AS name")
    make_table(bench, "shelves", rows, f"{shelves}, 'product ' || id AS name", "shelf, number")
    by_id = ["--sql", CHANGE.format(table="stock", keys=":keys")]
    by_two = ["--sql", "UPDATE shelves SET name = 'changed' WHERE (shelf, number) IN (:keys)"]
    half = ["--where", "price < 5"]
    return [
        Job("--checkpoint, --sql", "stock", rows, ["--checkpoint", folder / "update", *by_id]),
        Job("--checkpoint-table, --sql", "stock", rows, ["--checkpoint-table", *by_id]),
        Job("--checkpoint, --where", "stock", rows // 2, ["--checkpoint", folder / "announce", *half]),
        Job("--checkpoint, --sql, a key of two columns", "shelves", rows, ["--checkpoint", folder / "by_two", *by_two]),
    ]


def first_message(bench, job, place):
    """The seconds from its start to its first message in the topic, of a run that goes on from there."""
    job.go_to(bench, job.rows * place // 100)
    # It rests behind its first chunk until it is asked to end; near the end there is nothing behind that.
    taken = job.go_on(bench, 1, (0, 75), "--pause", "1h")
    say(f"{taken:6.2f} s: (k) a resume at {place} %, {job.name}")
    return taken

"""What the commands for ksync-stream --verify share: how they are asked, and how they answer."""

import decimal
import json
import os
import sys

COLUMNS = [name for name in os.environ.get("KSYNC_VERSION_COLUMN", "").split(",") if name]
# Large enough for each decimal of a database.
EXACT = decimal.Context(prec=20_000)


def parse(row):
    """Its JSON, with decimals as they are: as floats they would lose digits. To ksync 1.5 and "1.5" are the same."""
    return json.loads(row, parse_float=lambda text: format(EXACT.create_decimal(text).normalize(EXACT), "f"))


def version(row):
    """That of a row, as --version-column has it: the value of one column, an object of several, or all of the row."""
    if not COLUMNS:
        return row
    if len(COLUMNS) == 1:
        return row.get(COLUMNS[0])
    return {name: row.get(name) for name in COLUMNS}


def form(version):
    """The same for all that say the same, as nearly as is needed: a number and its text do."""
    return json.dumps(version, sort_keys=True).replace('"', "")


def answer(rows_of, all_keys):
    """`rows_of` gives for keys (text) the rows that the store holds of them, `all_keys` all that it holds.

    A row is None where the store says that there is none: that is told where there is one. A row that a store has in several
    places may differ in one of them only: that one is told.
    """
    try:
        if sys.argv[1:] == ["--list"]:
            for key in all_keys():
                print(json.dumps({"key": key}))
            return
        asked = {line["key"]: line.get("version") for line in map(parse, sys.stdin)}
        told = {}
        for key, row in rows_of(list(asked)):
            if row is None and asked.get(key) is None:
                continue
            held = None if row is None else version(row)
            if key not in told or form(held) != form(asked.get(key)):
                told[key] = held
        for key, held in told.items():
            print(json.dumps({"key": key, "version": held}))
    except OSError as error:
        print(f"the store is away: {error!r}", file=sys.stderr)
        sys.exit(75)

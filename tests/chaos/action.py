"""The action of ksync-stream: one transaction on the primary for each chunk, which may roll back, dawdle or die.

    python3 -I -S action.py FOLDER POSTGRES PLAN..     a word for each chunk of the run: END or END:DAWDLE_SECS
"""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from journal import Journal
from postgres import Postgres
from postgres import Refused

# Sorted, or two transactions could wait for each other.
CHANGE = """BEGIN; SET LOCAL lock_timeout = '30s';
    SELECT FROM rec WHERE id = ANY('{{{ids}}}') ORDER BY id FOR UPDATE;
    WITH changed AS (UPDATE rec SET version = version + 1 WHERE id = ANY('{{{ids}}}') RETURNING id, version)
    INSERT INTO hist (id, version, op, xid) SELECT id, version, {op}, pg_current_xact_id() FROM changed"""


def member(line, name):
    at = line.index(name) + len(name)
    return int(line[at:line.index(b",", at)])


def main():
    folder, url, *plan = sys.argv[1:]
    lines = sys.stdin.buffer.read().splitlines()
    op = member(lines[0], b'"op":')
    end, _, dawdle_secs = plan[op % len(plan)].partition(":")
    journal = Journal(f"{folder}/actions.jsonl")
    # By now the chunk's delay messages have to be in the log.
    journal.add("begun", op=op, rows=len(lines))
    database = Postgres(url)
    try:
        database.run(CHANGE.format(ids=",".join(str(member(line, b'"id":')) for line in lines), op=op))
    except Refused as refused:
        journal.add("rolled back", op=op, why=str(refused))
        return 1
    time.sleep(float(dawdle_secs or 0))
    if end == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "rolls-back":
        database.run("ROLLBACK")
        journal.add("rolled back", op=op)
        return 1
    database.run("COMMIT")
    if end == "orphans":
        # The writer dies between its commit and its instant messages.
        os.kill(os.getppid(), signal.SIGKILL)
        return 1
    # Not before now may there be an instant message.
    journal.add("committed", op=op)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Prints the ids of a batch: a handler for ksync-consume.

Exit status: 0 done; 65 a record that will never work; 75 the store is away, the same batch comes again later; an exception
makes it 1, and the batch comes again, too.
"""

import json
import os
import sys

source, ids = "", []
for line in sys.stdin.buffer:  # to the end: a batch that was not read is not done
    record = json.loads(line)
    source = f"{record['topic']}/{record['partition']}"
    payload = record["payload"]
    # A tombstone (null) says by its key what was deleted.
    id = record.get("key") if payload is None else payload.get("id")
    if id is None:
        print(f"offset {record['offset']}: no id", file=sys.stderr)
        sys.exit(65)
    ids.append(str(id))

try:
    # This line is where your store is written to.
    print(f"{source}: {' '.join(ids)}", flush=True)
except OSError as error:
    print(f"the store is away: {error}", file=sys.stderr)
    os._exit(75)  # sys.exit() would flush stdout once more, fail, and make it 120

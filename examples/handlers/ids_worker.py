#!/usr/bin/env python3
"""Prints the ids of each batch: a worker for ksync-consume --worker, one process for many batches.

Its stdout is for answers, one JSON object a line; all else goes to stderr. It ends when it is told to, or stdin does.
"""

import json
import sys


def answer(**message):
    print(json.dumps(message), flush=True)  # what stays in a buffer is no answer


batch, ids, failed = None, [], []
for line in sys.stdin.buffer:
    message = json.loads(line)
    kind = message.get("type")  # of our records none has a type
    if kind == "hello":
        answer(type="ready")
    elif kind == "batch":
        batch, ids, failed = message, [], []
    elif kind == "cancel" and batch and message["id"] == batch["id"]:
        batch = None  # another process has it now: nothing of it is written, and no answer is due
    elif kind == "end" and batch:
        try:
            # This line is where your store is written to; after it the batch may be called done.
            print(f"{batch['topic']}/{batch['partition']}: {' '.join(ids)}", file=sys.stderr)
            answer(type="done", id=batch["id"], failed=failed)
        except OSError:  # the store is away: the batch comes again
            answer(type="backoff", id=batch["id"], ms=5000)
        batch = None
    elif kind == "shutdown":
        break
    elif kind is None and batch:
        payload = message["payload"]
        # A tombstone (null) says by its key what was deleted.
        id = message.get("key") if payload is None else payload.get("id")
        error = {"offset": message["offset"], "error": "no id", "permanent": True}
        failed.append(error) if id is None else ids.append(str(id))

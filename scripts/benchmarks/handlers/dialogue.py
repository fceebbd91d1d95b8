"""The records that a handler gets on its stdin, whichever kind of handler it is."""

import json
import sys


def records():
    """Yields each record. As a worker it answers on stdout; plain lines have no types, so that nothing is answered."""
    batch = None
    for line in sys.stdin.buffer:
        message = json.loads(line)
        kind = message.get("type")
        if kind is None:
            yield message
        elif kind == "hello":
            print('{"type":"ready"}', flush=True)
        elif kind == "batch":
            batch = message["id"]
        elif kind == "cancel" and message["id"] == batch:
            batch = None
        elif kind == "end" and message["id"] == batch:
            print(json.dumps({"type": "done", "id": batch, "failed": []}), flush=True)
            batch = None
        elif kind == "shutdown":
            return

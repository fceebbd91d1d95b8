#!/usr/bin/env python3
"""Keeps an index of OpenSearch with the rows of a table of Postgres: a handler for ksync-consume.

OPENSEARCH_URL (http://localhost:9200, or https://user:password@..), INDEX (that of the table); the rest is in batch.py.

Each document has the version that the primary had when its row was read, and OpenSearch refuses what is older: the last
request of a leader that was deposed, or of a run that was killed. After a deletion it does so for as long as the index says,
which is a minute unless it was made otherwise, and not after a restart:

    curl -X PUT $OPENSEARCH_URL/products -H 'Content-Type: application/json' -d '{"settings": {"index.gc_deletes": "1d"}}'
"""

import base64
import http.client
import json
import os
import sys
from urllib.parse import unquote, urlsplit

from batch import TABLE, handle, look_up

INDEX = os.environ.get("INDEX", TABLE)
AT = urlsplit(os.environ.get("OPENSEARCH_URL", "http://localhost:9200"))
# Of the whole request: a record that OpenSearch cannot take, or too much at once, are looked for; a wrong login is not.
STATUSES = {400: 65, 413: 65, 401: 78, 403: 78}


def ask(method, path, body, parse=json.loads):
    headers = {"Content-Type": "application/x-ndjson"}
    if AT.username:
        login = f"{unquote(AT.username)}:{unquote(AT.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    connect = http.client.HTTPSConnection if AT.scheme == "https" else http.client.HTTPConnection
    connection = connect(AT.hostname, AT.port, timeout=60)
    try:
        connection.request(method, AT.path.rstrip("/") + path, body, headers)
        response = connection.getresponse()
        answer = response.read()
    except http.client.HTTPException as error:
        raise OSError("no whole answer") from error
    if response.status != 200:
        print(f"OpenSearch: {response.status} {answer[:500]}", file=sys.stderr)
        sys.exit(STATUSES.get(response.status, 75))
    return parse(answer)


def write(batch):
    version, rows = look_up(batch)
    lines = []
    for id, row in zip(batch, rows):
        about = {"_id": id, "version": version, "version_type": "external_gte"}
        lines += [json.dumps({"index": about}), row] if row else [json.dumps({"delete": about})]
    answer = ask("POST", f"/{INDEX}/_bulk", "\n".join([*lines, ""]).encode())
    for (_, offset), item in zip(batch.values(), answer["items"]):  # in the order of the request
        [result] = item.values()
        if result["status"] == 409:
            print(f"offset {offset}: the index has what was read later", file=sys.stderr)
        elif "error" in result:
            error = f"{result['error']['type']}: {result['error']['reason']}"[:500]
            if result["status"] != 400 or error.startswith("index_closed"):
                raise OSError(error)  # a full queue, a shard that is away, a disk that is full
            yield offset, error  # the row does not fit the mapping


if __name__ == "__main__":
    handle(write)

#!/usr/bin/env python3
"""Tells ksync-stream --verify what the index of opensearch.py holds; its settings are those of that handler."""

import contextlib
import json

from holds import answer, parse
from opensearch import INDEX, ask

PAGE = 5000


def find(path, question):
    found = ask("POST", path, json.dumps(question).encode(), parse)
    if found.get("_shards", {}).get("failed"):
        raise OSError(f"shards have failed: {found['_shards']}")
    return found


def rows_of(keys):
    documents = find(f"/{INDEX}/_mget", {"ids": keys})["docs"]
    for document in documents:
        if "error" in document:
            raise OSError(document["error"])
    return ((document["_id"], document["_source"]) for document in documents if document["found"])


def all_keys():
    page = find(f"/{INDEX}/_search?scroll=5m", {"size": PAGE, "_source": False, "sort": ["_doc"]})
    while page["hits"]["hits"]:
        yield from (hit["_id"] for hit in page["hits"]["hits"])
        page = find("/_search/scroll", {"scroll": "5m", "scroll_id": page["_scroll_id"]})
    # Else OpenSearch keeps it for these minutes, which does no harm where this is refused.
    with contextlib.suppress(SystemExit):
        ask("DELETE", "/_search/scroll", json.dumps({"scroll_id": page["_scroll_id"]}).encode())


answer(rows_of, all_keys)

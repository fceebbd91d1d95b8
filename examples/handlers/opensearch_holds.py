#!/usr/bin/env python3
"""Tells ksync-stream --verify what the index of opensearch.py holds; its settings are those of that handler."""

import json

from holds import answer, parse
from opensearch import INDEX, post

PAGE = 5000


def ask(path, question):
    found = post(path, json.dumps(question).encode(), parse)
    if found.get("_shards", {}).get("failed"):
        raise OSError(f"shards have failed: {found['_shards']}")
    return found


def rows_of(keys):
    documents = ask(f"/{INDEX}/_mget", {"ids": keys})["docs"]
    for document in documents:
        if "error" in document:
            raise OSError(document["error"])
    return ((document["_id"], document["_source"]) for document in documents if document["found"])


def all_keys():
    page = ask(f"/{INDEX}/_search?scroll=5m", {"size": PAGE, "_source": False, "sort": ["_doc"]})
    while page["hits"]["hits"]:
        yield from (hit["_id"] for hit in page["hits"]["hits"])
        page = ask("/_search/scroll", {"scroll": "5m", "scroll_id": page["_scroll_id"]})


answer(rows_of, all_keys)

#!/usr/bin/env python3
"""Tells ksync-stream --verify what the index of opensearch.py holds; its settings are those of that handler."""

import json

from holds import answer
from opensearch import INDEX, post

PAGE = 5000


def rows_of(keys):
    found = post(f"/{INDEX}/_mget", json.dumps({"ids": keys}).encode())["docs"]
    return {document["_id"]: document["_source"] for document in found if document.get("found")}


def all_keys():
    page = post(f"/{INDEX}/_search?scroll=5m", json.dumps({"size": PAGE, "_source": False, "sort": ["_doc"]}).encode())
    while page["hits"]["hits"]:
        yield from (hit["_id"] for hit in page["hits"]["hits"])
        page = post("/_search/scroll", json.dumps({"scroll": "5m", "scroll_id": page["_scroll_id"]}).encode())


answer(rows_of, all_keys)

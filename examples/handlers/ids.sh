#!/bin/sh
# Prints the ids of a batch: a handler for ksync-consume, with POSIX tools alone.
# Exit status: 0 done; 65 a record that will never work; 75 the store is away, the same batch comes again later; any other:
# the batch comes again, later in halves, until the bad record stands alone.
# sed reads its input to the end, as a handler must.
lines=$(sed -n '
    # First the topic and the partition, then an id for each record.
    1 { h; s|^{"topic":"\([^"]*\)","partition":\([0-9]*\),.*|\1/\2:|p; g; }
    # Only the first of these is the member itself: within a string it would be written \"payload\".
    s/,"payload":/\
/
    s/.*\n{ *"id" *: *\([0-9][0-9]*\) *[,}].*/\1/p
    # A tombstone says by its key what was deleted.
    s/.*,"key":"\([^"\]*\)",.*\nnull}$/\1/p
    # All other lines are still whole. No id has a quote in it.
    /^{/ s/.*/"/p
') || exit
case $lines in
*\"*)
    echo "a record without an id" >&2
    exit 65
    ;;
esac
set -f # a key may be a *
# This line is where your store is written to. A service that says no (4xx) may mean a record, all else passes by itself:
#   case $(curl -sS -o /dev/null -w '%{http_code}' -d "$lines" http://..) in
#       2??) ;; 408 | 429) exit 75 ;; 4??) exit 1 ;; *) exit 75 ;;
#   esac
echo $lines || exit 75

#!/bin/sh
# Prints the ids of a batch: a handler for ksync-consume, with POSIX tools alone.
# Exit status: 0 done; 65 a record that will never work; 75 the store is away, the same batch comes again later.
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
# This line is where your store is written to. (With curl: `curl -f .. || exit 75`.)
echo $lines || exit 75

#!/bin/sh
# Shows what a handler gets: what it prints is in the log of ksync-consume.
set -eu
echo "batch of $KSYNC_BATCH_COUNT from $KSYNC_BATCH_TOPIC/$KSYNC_BATCH_PARTITION," \
    "offsets $KSYNC_BATCH_FIRST_OFFSET to $KSYNC_BATCH_LAST_OFFSET, attempt $KSYNC_BATCH_ATTEMPT"
cat

#!/usr/bin/env php
<?php
// Prints the ids of a batch: a handler for ksync-consume.
//
// Exit status: 0 done; 65 a record that will never work; 75 the store is away, the same batch comes again later; an
// exception makes it 255, and the batch comes again, too.

// Also a mere warning ends it, such as that of a missing member.
set_error_handler(fn($level, $text) => throw new ErrorException($text));

$source = '';
$ids = [];
while (($line = fgets(STDIN)) !== false) { // to the end: a batch that was not read is not done
    $record = json_decode($line, true, 512, JSON_BIGINT_AS_STRING | JSON_THROW_ON_ERROR);
    $source = "{$record['topic']}/{$record['partition']}";
    $payload = $record['payload'];
    // A tombstone (null) says by its key what was deleted.
    $id = $payload === null ? $record['key'] ?? null : $payload['id'] ?? null;
    if ($id === null) {
        fwrite(STDERR, "offset {$record['offset']}: no id\n");
        exit(65);
    }
    $ids[] = $id;
}

try {
    // This line is where your store is written to.
    fwrite(STDOUT, "$source: " . implode(' ', $ids) . "\n");
} catch (ErrorException $error) {
    fwrite(STDERR, "the store is away: {$error->getMessage()}\n");
    exit(75);
}

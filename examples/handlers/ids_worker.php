#!/usr/bin/env php
<?php
// Prints the ids of each batch: a worker for ksync-consume --worker, one process for many batches.
// Its stdout is for answers, one JSON object a line; all else goes to stderr. It ends when it is told to, or stdin does.

// Also a mere warning ends it, such as that of a missing member.
set_error_handler(fn($level, $text) => throw new ErrorException($text));

// Not by echo: what stays in a buffer is no answer.
$answer = fn($message) => fwrite(STDOUT, json_encode($message) . "\n");
[$batch, $ids, $failed] = [null, [], []];
while (($line = fgets(STDIN)) !== false) {
    $message = json_decode($line, true, 512, JSON_BIGINT_AS_STRING | JSON_THROW_ON_ERROR);
    $type = $message['type'] ?? null; // of our records none has a type
    if ($type === 'hello') {
        $answer(['type' => 'ready']);
    } elseif ($type === 'batch') {
        [$batch, $ids, $failed] = [$message, [], []];
    } elseif ($type === 'cancel' && $batch && $batch['id'] === $message['id']) {
        $batch = null; // another process has it now: nothing of it is written, and no answer is due
    } elseif ($type === 'end' && $batch) {
        try {
            // This line is where your store is written to; after it the batch may be called done.
            fwrite(STDERR, "{$batch['topic']}/{$batch['partition']}: " . implode(' ', $ids) . "\n");
            $answer(['type' => 'done', 'id' => $batch['id'], 'failed' => $failed]);
        } catch (ErrorException) { // the store is away: the batch comes again
            $answer(['type' => 'backoff', 'id' => $batch['id'], 'ms' => 5000]);
        }
        $batch = null;
    } elseif ($type === 'shutdown') {
        break;
    } elseif ($type === null && $batch) {
        $payload = $message['payload'];
        // A tombstone (null) says by its key what was deleted.
        $id = $payload === null ? $message['key'] ?? null : $payload['id'] ?? null;
        if ($id === null) $failed[] = ['offset' => $message['offset'], 'error' => 'no id', 'permanent' => true];
        else $ids[] = $id;
    }
}

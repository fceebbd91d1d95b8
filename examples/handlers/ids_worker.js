#!/usr/bin/env node
// Prints the ids of each batch: a worker for ksync-consume --worker, one process for many batches.
// Its stdout is for answers, one JSON object a line; all else goes to stderr. It ends when it is told to, or stdin does.

const fs = require('node:fs');

const answer = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
let batch = null, ids = [], failed = [];

function receive(message) {
  if (message.type === 'hello') answer({ type: 'ready' });
  if (message.type === 'batch') [batch, ids, failed] = [message, [], []];
  // Another process has it now: nothing of it is written, and no answer is due.
  if (message.type === 'cancel' && batch?.id === message.id) batch = null;
  if (message.type === 'end' && batch) {
    try {
      // This line is where your store is written to; after it the batch may be called done.
      fs.writeFileSync(2, `${batch.topic}/${batch.partition}: ${ids.join(' ')}\n`);
      answer({ type: 'done', id: batch.id, failed });
    } catch { // the store is away: the batch comes again
      answer({ type: 'backoff', id: batch.id, ms: 5000 });
    }
    batch = null;
  }
  if (message.type === 'shutdown') process.exit(0);
  if (message.type === undefined && batch) { // a record: none of them has a type
    // A tombstone (null) says by its key what was deleted.
    const id = message.payload === null ? message.key : message.payload.id;
    if (id === undefined || id === null) failed.push({ offset: message.offset, error: 'no id', permanent: true });
    else ids.push(id);
  }
}

let rest = ''; // not readline: since Node 24 it cuts at U+2028, too
process.stdin.setEncoding('utf8').on('data', (text) => {
  const lines = (rest + text).split('\n');
  rest = lines.pop();
  lines.forEach((line) => receive(JSON.parse(line)));
});

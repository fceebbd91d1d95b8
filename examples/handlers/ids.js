#!/usr/bin/env node
// Prints the ids of a batch: a handler for ksync-consume.
//
// Exit status: 0 done; 65 a record that will never work; 75 the store is away, the same batch comes again later; an
// exception makes it 1, and the batch comes again, too.

const fs = require('node:fs');

let source = '';
const ids = [];
// To the end: a batch that was not read is not done. Not by readline: since Node 24 it cuts at U+2028, too.
for (const line of fs.readFileSync(0, 'utf8').split('\n')) {
  if (line === '') continue; // after the last line break
  const record = JSON.parse(line); // rounds numbers above 2 ** 53: write such ids as strings
  source = `${record.topic}/${record.partition}`;
  // A tombstone (null) says by its key what was deleted.
  const id = record.payload === null ? record.key : record.payload.id;
  if (id === undefined || id === null) {
    console.error(`offset ${record.offset}: no id`);
    process.exit(65);
  }
  ids.push(id);
}

try {
  // This line is where your store is written to. In an async one, await it before the process ends.
  fs.writeFileSync(1, `${source}: ${ids.join(' ')}\n`);
} catch (error) {
  console.error(`the store is away: ${error.message}`);
  process.exit(75);
}

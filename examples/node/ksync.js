// Announces what an application changes, by `ksync-stream -t products --serve /run/ksync/stream.sock` beside it.
//   await ksync.transaction(pool, async (tx) => {       // a pool of pg or of mysql2/promise
//     await tx.query('UPDATE products SET price = 500 WHERE id = 7');
//     tx.saved('products', 7);                          // or touched, destroyed; a payload may follow
//   });
//   await ksync.bulk('products', ids, () => pool.query('UPDATE ..'));
//   ksync.work(async (records) => { .. });              // the other end, for ksync-consume --worker
// Delay messages acknowledged -> COMMIT -> instant messages. An error of `transaction` has `committed`: false, or null: unknown.
// Other libraries: tx = ksync.begin(), tx.saved(..), await tx.covered(), commit, await tx.committed() or tx.rolledBack().
// Tests: after sent = ksync.collect() nothing is sent; sent.splice(0) reads and clears what would be. collect(false) ends that.
// KSYNC_SOCKET, KSYNC_TIMEOUT=5 (seconds), KSYNC_ON_ERROR=log (commit although ksync-stream is away), KSYNC_DISABLED=1.
const { randomBytes } = require('node:crypto');
const net = require('node:net');
const setting = (name, otherwise) => process.env[`KSYNC_${name}`] || otherwise;
const log = (line) => console.error(`ksync: ${line}`);
let shared = null; // one connection for all: requests need not wait for the answers to those before
let collected = null;
class KsyncError extends Error { committed = false; }

function connect(path) {
  // Without a reference a script can end. While an answer is due, its timer holds the process.
  const socket = Object.assign(net.connect(path).unref(), { at: path, last: 0, waiting: new Map() });
  const lose = (why) => {
    if (shared === socket) shared = null;
    const text = `cannot reach ksync-stream at ${path}: ${why} (is it running, with --serve?)`;
    for (const settle of socket.waiting.values()) settle(Object.assign(new KsyncError(text), { isBroken: true }));
  };
  socket.on('error', (error) => lose(error.message)).on('close', () => lose('the connection was closed'));
  eachLine(socket, ({ id, ok, error }) => socket.waiting.get(id)?.(ok ? null : new KsyncError(error)));
  return socket;
}

const exchange = ({ tx, op, messages }) => new Promise((resolve, reject) => {
  const path = setting('SOCKET', '/run/ksync/stream.sock');
  if (shared?.at !== path) shared = connect(path);
  const [socket, id, seconds] = [shared, ++shared.last, Number(setting('TIMEOUT')) || 5];
  const settle = (error) => {
    socket.waiting.delete(id);
    clearTimeout(timer);
    return error ? reject(error) : resolve(socket);
  };
  const late = () => settle(new KsyncError(`ksync-stream has not answered within ${seconds} s`));
  // Not at once: where the event loop was busy for long, the answer may be there and only not be read yet.
  const timer = setTimeout(() => setImmediate(late), seconds * 1000);
  socket.waiting.set(id, settle);
  socket.write(`{"id":${id},"tx":"${tx}","op":"${op}"${messages ? `,"messages":[${messages}]` : ''}}\n`);
});

async function ask(request) { // resolves to the connection that knows of it; one that has broken is made anew, once
  if (collected) return void collected.push({ ...request, messages: (request.messages ?? []).map((text) => JSON.parse(text)) });
  return exchange(request).catch((error) => (error.isBroken ? exchange(request) : Promise.reject(error)));
}

function json(id) { // a number above 2^53 was rounded when it was read: it is the id of another record
  if (Array.isArray(id) && id.length > 0) return `[${id.map(json)}]`;
  if (typeof id === 'string') return JSON.stringify(id);
  if (typeof id === 'bigint' || (Number.isFinite(id) && Math.abs(id) <= Number.MAX_SAFE_INTEGER)) return String(id);
  throw new TypeError(`an id is a string, a BigInt, a number up to 2^53 or a list of these, not ${String(id)}`);
}

function message([topic, id, payload]) { // what the record is called, and its text
  const key = JSON.stringify(typeof id === 'string' ? id : json(id));
  const body = payload === undefined ? `{"id":${json(id)}}` : JSON.stringify(payload);
  const record = `"topic":${JSON.stringify(String(topic))},"key":${key}`;
  return [record, `{${record},"payload":${body}}`];
}

function slices(messages) { // of 250 or fewer: a request may have 16 MiB
  const longest = messages.reduce((most, text) => Math.max(most, Buffer.byteLength(text)), 32_000);
  const count = Math.ceil(8_000_000 / longest);
  return Array.from({ length: Math.ceil(messages.length / count) }, (_, n) => messages.slice(n * count, (n + 1) * count));
}

class Transaction {
  #tx = randomBytes(8).toString('hex');
  #messages = new Map(); // of each record the last
  #coverings = []; // each resolves to the connection that knows of its changes, or to { error }: why none does
  #send = (op, messages) => slices([...messages.values()]).map((some) => ask({ tx: this.#tx, op, messages: some }));
  isOver = false;
  saved = (topic, id, payload) => this.cover([[topic, id, payload]]);
  touched = this.saved;
  destroyed = this.saved;

  cover(changes) {
    if (setting('DISABLED') === '1' || changes.length === 0) return;
    if (this.isOver) throw new KsyncError('a change came after the end of its transaction; is all that belongs to it awaited?');
    const messages = new Map(changes.map(message));
    messages.forEach((text, record) => this.#messages.set(record, text));
    this.#coverings.push(...this.#send('delay', messages).map((covering) => covering.catch((error) => ({ error }))));
  }

  async covered() {
    this.isOver = true;
    const cause = (await Promise.all(this.#coverings)).find((covering) => covering?.error)?.error;
    if (!cause) return;
    if (setting('ON_ERROR') !== 'log') throw new KsyncError(`${cause.message}; the database has not committed`, { cause });
    log(`A TRANSACTION GOES ON WITHOUT DELAY MESSAGES (KSYNC_ON_ERROR=log): ${cause.message}`);
  }

  async committed() {
    if (this.#messages.size === 0) return;
    const all = () => Promise.all(this.#send('instant', this.#messages));
    const orAll = (error) => (error.message.includes('not known') ? all() : Promise.reject(error));
    const note = (error) => log(`the database has committed, but changes are not announced at once: ${error.message}`);
    const isKnown = (await Promise.all(this.#coverings)).every((connection) => connection === shared);
    await (isKnown ? ask({ tx: this.#tx, op: 'instant' }).catch(orAll) : all()).catch(note);
  }

  async rolledBack() {
    this.isOver = true;
    await Promise.all(this.#coverings); // so that none that is sent again comes after it. What is closed has forgotten.
    if (this.#messages.size > 0 && (collected || shared)) ask({ tx: this.#tx, op: 'forget' }).catch(() => {});
  }
}

function fail(error, committed) {
  if (Object(error) === error) Reflect.set(error, 'committed', committed);
  throw error;
}

/** Commits what `body` does and resolves to what it returns. `begin` may set the isolation level. */
async function transaction(pool, body, begin = 'BEGIN') {
  const client = await (pool.getConnection ? pool.getConnection() : pool.connect()).catch((error) => fail(error, false));
  const ignore = () => {}; // pg: unheard it would end the process, and the next query fails anyway
  client.on('error', ignore);
  const query = async (...sql) => (tx.isOver ? Promise.reject(new KsyncError('the transaction is over')) : client.query(...sql));
  const tx = Object.assign(new Transaction(), { client, query });
  let [committed, isClean] = [false, false];
  try {
    await client.query(begin);
    const result = await body(tx);
    await tx.covered();
    committed = null;
    committed = isClean = (await client.query('COMMIT'))?.command !== 'ROLLBACK'; // so Postgres says if a statement has failed
    if (!committed) throw new KsyncError('the database has rolled back at COMMIT, since a statement had failed');
    return result;
  } catch (error) {
    tx.isOver = true; // pg's errors of the server have a severity, in its language; all else may come after the commit
    if (error?.severity && !/^(08|40003|57P|XX|undefined)/.test(error.code)) committed = false;
    if (committed === false) isClean = await client.query('ROLLBACK').then(() => true, () => false);
    fail(error, committed);
  } finally {
    await (isClean || !client.destroy ? client.release(!isClean) : client.destroy()); // pg closes it where that is true
    client.off('error', ignore);
    await (committed === false ? tx.rolledBack() : tx.committed()); // what nobody knows, too: handlers look records up
  }
}

/** Delay messages of these records, some thousand at most, then `action`, then their instant messages, unless it has failed. */
async function bulk(topic, ids, action) {
  const tx = new Transaction();
  tx.cover(Array.from(ids, (id) => [topic, id]));
  const undo = (error) => tx.rolledBack().then(() => Promise.reject(error)); // the delay messages bring up what was done in part
  const result = await tx.covered().then(() => action()).catch(undo);
  await tx.committed();
  return result;
}

function eachLine(stream, take) {
  let parts = []; // not readline: since Node 24 it cuts at U+2028, too
  stream.setEncoding('utf8').on('data', (text) => {
    parts.push(text);
    if (!text.includes('\n')) return; // a line may be long: it is joined once
    const lines = parts.join('').split('\n');
    parts = [lines.pop()];
    try { lines.forEach((line) => take(JSON.parse(line))); } catch (error) { stream.destroy(error); }
  });
}

/* Calls `handle(records, batch)` for each batch. It returns nothing where all are done, or those that failed: [{ offset, error,
 * permanent }]; or throws an error with that list as `failed`, or with `backoff`, in ms, where the store is away. Any other ends
 * the process: the batch comes again, later in halves, until the bad record stands alone. Large ids are exact in `key` only. */
function work(handle) {
  const write = process.stdout.write.bind(process.stdout);
  process.stdout.write = process.stderr.write.bind(process.stderr); // what console.log prints is no answer
  const answer = (said) => write(`${JSON.stringify(said)}\n`);
  const named = ({ offset, error, permanent }) => ({ offset, error: String(error?.message ?? error), permanent: !!permanent });
  const run = ({ id, ...told }, given) => Promise.resolve()
    .then(() => handle(given, told))
    .catch((error) => error?.failed ?? Promise.reject(error))
    .then((failed) => answer({ type: 'done', id, failed: (failed ?? []).map(named) }))
    .catch((error) => {
      if (error?.backoff) return answer({ type: 'backoff', id, ms: Math.ceil(error.backoff) });
      console.error(error);
      process.exit(1); // not by a throw, which Sentry and the like may catch: then no answer would ever come
    });
  let [batch, records, working] = [null, [], null];
  const end = () => Promise.resolve(working).then(() => process.exit(0));
  eachLine(process.stdin.on('end', end), (told) => {
    if (told.type === undefined) records.push(told); // a record: none of them has a type
    if (told.type === 'hello') answer({ type: 'ready' });
    if (told.type === 'batch') [batch, records] = [told, []];
    if (told.type === 'cancel' && batch?.id === told.id) batch = null; // after its end an answer is due all the same
    if (told.type === 'end' && batch) [working, batch] = [run(batch, records), null];
    if (told.type === 'shutdown') end();
  });
}

const [begin, collect] = [() => new Transaction(), (on = true) => (collected = on ? [] : null)];
module.exports = { transaction, bulk, begin, collect, work, KsyncError };

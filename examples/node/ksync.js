// Announces what an application changes, by `ksync-stream -t products --serve /run/ksync/stream.sock` beside it.
//   await ksync.transaction(pool, async (tx) => {       // a pool of pg or of mysql2/promise
//     await tx.query('UPDATE products SET price = 500 WHERE id = 7');
//     tx.saved('products', 7);                          // or touched, destroyed; a payload may follow
//   });
//   await ksync.bulk('products', ids, () => pool.query('UPDATE ..'));
//   ksync.work(async (records) => { .. });              // the other end, for ksync-consume --worker
// Delay messages acknowledged -> COMMIT -> instant messages. An error of it has `committed`: false, or null: unknown.
// By hand: tx = ksync.begin(), tx.saved(..), await tx.covered(), commit, await tx.committed() or tx.rolledBack().
// Tests: with sent = ksync.collect() nothing is sent; sent.splice(0) takes what would be. collect(false) ends that.
// KSYNC_SOCKET, KSYNC_ANSWER_TIMEOUT=5 (seconds), KSYNC_ON_ERROR=log (it is committed all the same), KSYNC_DISABLED=1.
const net = require('node:net');
const setting = (name, otherwise) => process.env[`KSYNC_${name}`] || otherwise;
const log = (line) => console.error(`ksync: ${line}`);
const marked = (error, committed) => (Object.isExtensible(error) ? Object.assign(error, { committed }) : error);
let [shared, collected, last] = [null, null, 0]; // one connection for all: nobody waits for the answers to others
class KsyncError extends Error { committed = false; }

function connect(path) {
  // Without a reference a script can end. While an answer is due, its timer holds the process.
  const socket = Object.assign(net.connect(path).unref(), { at: path, last: 0, waiting: new Map() });
  const lose = (why) => {
    if (shared === socket) shared = null;
    const text = `cannot reach ksync-stream at ${path}: ${why} (is it running, with --serve?)`;
    for (const settle of socket.waiting.values()) settle(new KsyncError(text, { cause: 'broken' }));
  };
  socket.on('error', (error) => lose(error.message)).on('close', () => lose('the connection was closed'));
  eachLine(socket, ({ id, ok, error }) => socket.waiting.get(id)?.(ok ? null : new KsyncError(error)));
  return socket;
}

const ask = ({ tx, op, messages }) => new Promise((resolve, reject) => { // resolves to the connection that knows of it
  if (collected) return resolve(void collected.push({ tx, op, messages: JSON.parse(`[${messages ?? []}]`) }));
  const path = setting('SOCKET', '/run/ksync/stream.sock');
  if (shared?.at !== path) shared = connect(path);
  const [socket, id, seconds] = [shared, ++shared.last, Number(setting('ANSWER_TIMEOUT')) || 5];
  const settle = (error) => {
    socket.waiting.delete(id);
    clearTimeout(timer);
    return error ? reject(error) : resolve(socket);
  };
  const late = () => settle(new KsyncError(`ksync-stream has not answered within ${seconds} s`, { cause: 'late' }));
  // Not at once: where the event loop was busy for long, the answer may be there and only not be read yet.
  const timer = setTimeout(() => setImmediate(late), seconds * 1000);
  socket.waiting.set(id, settle);
  socket.write(`{"id":${id},"tx":"${tx}","op":"${op}"${messages ? `,"messages":[${messages}]` : ''}}\n`);
});

function json(id) { // a number above 2^53 was rounded when it was read: it is the id of another record
  if (Array.isArray(id) && id.length > 0) return `[${id.map(json)}]`;
  if (typeof id === 'string') return JSON.stringify(id);
  if (typeof id === 'bigint' || (Number.isFinite(id) && Math.abs(id) <= Number.MAX_SAFE_INTEGER)) return String(id);
  throw new TypeError(`an id is a string, a BigInt, a number up to 2^53 or a list of these, not ${String(id)}`);
}

function message([topic, id, payload]) { // what the record is called, and its text
  const name = `"topic":${JSON.stringify(`${topic}`)},"key":${JSON.stringify(typeof id === 'string' ? id : json(id))}`;
  const body = payload === undefined ? `{"id":${json(id)}}` : JSON.stringify(payload);
  return [name, `{${name},"payload":${body}}`];
}

function slices(messages) { // of 250 or fewer: a request may have 16 MiB
  const count = Math.ceil(8_000_000 / messages.reduce((most, text) => Math.max(most, Buffer.byteLength(text)), 32_000));
  return messages.flatMap((_, at) => (at % count === 0 ? [messages.slice(at, at + count)] : []));
}

class Transaction {
  static FRESH_MS = 30_000; // what is older goes once more before the commit: half of the shortest sensible delay
  #tx = ++last;
  #messages = new Map(); // of each record the last
  #coverings = []; // each resolves to the connection that knows of its changes, or to { error }: why none does
  #since; // then the first of it was sent
  #send = (op, messages) => slices([...messages.values()]).map((some) => ask({ tx: this.#tx, op, messages: some }));
  isOver = false;
  saved = (topic, id, payload) => this.cover([[topic, id, payload]]);
  touched = this.saved;
  destroyed = this.saved;

  cover(changes) {
    if (setting('DISABLED') === '1' || changes.length === 0) return;
    if (this.isOver) throw new KsyncError('a change came after the end of its transaction; is all of it awaited?');
    try { this.#cover(new Map(changes.map(message))); } catch (error) {
      this.#coverings.push({ error }); // somebody may catch it, and commit
      throw error;
    }
  }

  #cover(messages) {
    if (messages === this.#messages) this.#coverings = [];
    messages.forEach((text, record) => this.#messages.set(record, text));
    this.#since ??= performance.now();
    this.#coverings.push(...this.#send('delay', messages).map((covering) => covering.catch((error) => ({ error }))));
  }

  async covered() {
    this.isOver = true;
    const known = collected ? [] : await Promise.all(this.#coverings);
    const isOld = performance.now() - this.#since > Transaction.FRESH_MS; // who was to renew it may be gone
    const isFinal = known.some(({ error } = {}) => error && error.cause !== 'broken');
    if (!isFinal && (isOld || known.some((connection) => connection !== shared))) this.#cover(this.#messages);
    const cause = (await Promise.all(this.#coverings)).find((covering) => covering?.error)?.error;
    if (!cause) return;
    if (setting('ON_ERROR') === 'log') return log(`A TRANSACTION GOES ON WITHOUT DELAY MESSAGES: ${cause.message}`);
    throw new KsyncError(`${cause.message}; the database has not committed`, { cause });
  }

  async committed() {
    if (this.#messages.size === 0) return;
    const all = () => Promise.all(this.#send('instant', this.#messages));
    const isKnown = (await Promise.all(this.#coverings)).every((connection) => connection === shared);
    await (isKnown ? ask({ tx: this.#tx, op: 'instant' }) : all())
      .catch((error) => (error.cause === 'late' ? Promise.reject(error) : all())) // it broke, or may not know all
      .catch((error) => log(`the database has committed, but changes are not announced at once: ${error.message}`));
  }

  async rolledBack() { // a connection that is closed has forgotten it
    this.isOver = true;
    if (this.#messages.size > 0 && (collected || shared)) ask({ tx: this.#tx, op: 'forget' }).catch(() => {});
  }
}

/** Commits what `body` does and resolves to what it returns. `begin` may set the isolation level. */
async function transaction(pool, body, begin = 'BEGIN') {
  const client = await (pool.getConnection?.() ?? pool.connect()).catch((e) => Promise.reject(marked(e, false)));
  const ignore = () => {}; // pg: unheard it would end the process, and the next query fails anyway
  client.on('error', ignore);
  const query = (...q) => (tx.isOver ? Promise.reject(new KsyncError('the transaction is over')) : client.query(...q));
  const tx = Object.assign(new Transaction(), { client, query });
  let [committed, isClean] = [false, false];
  try {
    await client.query(begin);
    const result = await body(tx);
    await tx.covered();
    committed = null;
    committed = isClean = (await client.query('COMMIT'))?.command !== 'ROLLBACK'; // if a statement has failed
    if (!committed) throw new KsyncError('the database has rolled back at COMMIT, since a statement had failed');
    return result;
  } catch (error) {
    tx.isOver = true; // pg's errors of the server have a severity, in its language; all else may come after the commit
    if (error?.severity && !/^(08|40003|57P|XX|undefined)/.test(error.code)) committed = false;
    if (committed === false) isClean = await client.query('ROLLBACK').then(() => true, () => false);
    throw marked(error, committed);
  } finally {
    await (isClean || !client.destroy ? client.release(!isClean) : client.destroy()); // pg closes it where that is true
    client.off('error', ignore);
    await (committed === false ? tx.rolledBack() : tx.committed()); // what nobody knows, too: handlers look records up
  }
}

/** Delay messages of these records, some thousand at most; `action`; their instant messages, unless that has failed. */
async function bulk(topic, ids, action) {
  const tx = new Transaction();
  tx.cover(Array.from(ids, (id) => [topic, id]));
  const result = await tx.covered().then(action).catch((error) => tx.rolledBack().then(() => Promise.reject(error)));
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

/* Calls `handle(records, batch)` for each batch. It returns nothing, or what failed: [{ offset, error, permanent }]; or
 * throws an error with that list as `failed`, or with `backoff` in ms: the store is away. Any other ends the process: a
 * batch comes again, later in halves, until the bad record stands alone. Large ids are exact in `key` only. */
function work(handle) {
  const write = process.stdout.write.bind(process.stdout);
  process.stdout.write = process.stderr.write.bind(process.stderr); // what console.log prints is no answer
  const answer = (said) => write(`${JSON.stringify(said)}\n`);
  const named = ({ offset, error: e, permanent: p }) => ({ offset, error: String(e?.message ?? e), permanent: !!p });
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

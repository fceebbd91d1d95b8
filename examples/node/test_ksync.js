// node --test examples/node/test_ksync.js
// A fake ksync-stream stands at the socket, a fake client at the database. With DATABASE_URL=postgres://.. and the package pg
// (by NODE_PATH, perhaps) the last tests use the real one.
const assert = require('node:assert/strict');
const { spawn } = require('node:child_process');
const { EventEmitter, once } = require('node:events');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { setTimeout: pause } = require('node:timers/promises');
const { describe, test } = require('node:test');
const { runInNewContext } = require('node:vm');
const ksync = require('./ksync.js');

/** The connections that ksync.js has made. */
const connected = [];
const { connect } = net;
net.connect = (...to) => connected[connected.push(connect(...to)) - 1];

/** Breaks the connections of a server. Returns once ksync.js has noticed it. */
async function cut(server) {
  const noticed = new Promise((resolve) => { connected.at(-1).once('close', resolve); });
  server.cut();
  await noticed;
}

/** Returns once ksync.js has read all that was answered before this. */
async function answersAreRead() {
  await ksync.bulk('probes', [0], () => {});
}

const SETTINGS = ['KSYNC_SOCKET', 'KSYNC_ANSWER_TIMEOUT', 'KSYNC_ON_ERROR', 'KSYNC_DISABLED'];
const OK = { ok: true };

/** A test that leaves no settings behind. */
const check = (name, run, options = {}) => test(name, options, async (t) => {
  try {
    await run(t);
  } finally {
    ksync.collect(false);
    SETTINGS.forEach((setting) => delete process.env[setting]);
  }
});

async function eventually(what, condition) {
  const deadline = Date.now() + 5000;
  while (!condition()) {
    assert.ok(Date.now() < deadline, `not in time: ${what}`);
    await pause(5);
  }
}

/** A directory of the test's own. */
function directory(t) {
  const made = fs.mkdtempSync(path.join(os.tmpdir(), 'ksync-'));
  t.after(() => fs.rmSync(made, { recursive: true }));
  return made;
}

/**
 * Stands for ksync-stream --serve. `reply(request, server)` is the answer without its id; null is none. What it was asked is in
 * `lines`, read in `requests`, with the number of the `connection`; the operations go into `journal`, too.
 */
async function serve(t, { reply = () => OK, journal = [], at = path.join(directory(t), 'stream.sock') } = {}) {
  const sockets = new Set();
  const server = { at, lines: [], requests: [], connections: 0, cut: () => sockets.forEach((socket) => socket.destroy()) };
  const listener = net.createServer((socket) => {
    const connection = ++server.connections;
    let rest = '';
    sockets.add(socket);
    socket.on('error', () => {}).on('close', () => sockets.delete(socket));
    socket.setEncoding('utf8').on('data', (text) => {
      rest += text;
      if (!text.includes('\n')) return; // a line may be long
      const lines = rest.split('\n');
      rest = lines.pop();
      lines.forEach(async (line) => {
        const request = JSON.parse(line);
        server.lines.push(line);
        server.requests.push({ ...request, connection });
        journal.push(request.op);
        const said = await reply(request, server);
        if (said) socket.write(`${JSON.stringify({ id: request.id, ...said })}\n`);
      });
    });
  });
  listener.listen(at);
  await once(listener, 'listening');
  server.close = () => new Promise((resolve) => {
    server.cut();
    listener.close(resolve);
  });
  t.after(() => listener.listening && server.close());
  process.env.KSYNC_SOCKET = at;
  return server;
}

/** What was asked, without what differs from run to run. */
const asked = ({ requests }) => requests.map(({ op, messages }) => (messages ? [op, ...messages.map(({ key }) => key)] : [op]));

/** A client that notes its queries; a query whose text is in `answers` gets that answer, or fails by it. */
function client(journal, answers, answer) {
  const made = new EventEmitter();
  made.query = async (text) => {
    journal.push(text);
    if (answers[text] instanceof Error) throw answers[text];
    return answers[text] ?? answer(text);
  };
  return made;
}

function pgPool(journal, answers = {}) {
  const made = client(journal, answers, (text) => ({ command: text.split(' ')[0], rows: [] }));
  made.release = (broken) => journal.push(broken ? 'destroy' : 'release');
  return { client: made, connect: async () => made };
}

function mysqlPool(journal, answers = {}) {
  const made = client(journal, answers, () => [{ affectedRows: 1 }, undefined]);
  made.release = () => journal.push('release');
  made.destroy = () => journal.push('destroy');
  return { client: made, getConnection: async () => made };
}

const POOLS = { pg: pgPool, mysql2: mysqlPool };

/** Lets seconds go by without any wait. */
function clock(t) {
  const real = performance.now.bind(performance);
  let passed = 0;
  t.mock.method(performance, 'now', () => real() + passed);
  return (seconds) => (passed += seconds * 1000);
}

/** The lines that go to the log meanwhile. */
function logged(t) {
  const { mock } = t.mock.method(console, 'error', () => {});
  return () => mock.calls.map(({ arguments: [line] }) => line);
}

const one = async (tx) => tx.saved('products', 7);

describe('a transaction', () => {
  for (const [name, poolOf] of Object.entries(POOLS)) {
    check(`of ${name} has its delay messages acknowledged before COMMIT, and its instant messages sent after it`, async (t) => {
      const journal = [];
      const server = await serve(t, { journal });
      const pool = poolOf(journal);
      const result = await ksync.transaction(pool, async (tx) => {
        await tx.query('UPDATE products');
        tx.saved('products', 7);
        return 'result';
      });
      assert.equal(result, 'result');
      assert.deepEqual(journal, ['BEGIN', 'UPDATE products', 'delay', 'COMMIT', 'release', 'instant']);
      assert.equal(pool.client.listenerCount('error'), 0);
      const [delay, instant] = server.requests;
      assert.deepEqual(delay.messages, [{ topic: 'products', key: '7', payload: { id: 7 } }]);
      assert.equal(instant.messages, undefined);
      assert.equal(instant.tx, delay.tx);
    });

    check(`of ${name} is rolled back and forgotten by an exception, which is thrown on`, async (t) => {
      const journal = [];
      await serve(t, { journal });
      const error = new Error('no such category');
      const failing = async (tx) => {
        tx.saved('products', 7);
        throw error;
      };
      await assert.rejects(ksync.transaction(poolOf(journal), failing), (thrown) => thrown === error);
      assert.equal(error.committed, false);
      await eventually('it is forgotten', () => journal.includes('forget'));
      assert.deepEqual(journal.filter((entry) => entry !== 'delay'), ['BEGIN', 'ROLLBACK', 'release', 'forget']);
    });

    check(`of ${name} whose COMMIT is not answered is announced, and the error says that nobody knows`, async (t) => {
      const journal = [];
      await serve(t, { journal });
      const COMMIT = Object.assign(new Error('the connection was lost'), { code: 'ECONNRESET' });
      await assert.rejects(ksync.transaction(poolOf(journal, { COMMIT }), one), { code: 'ECONNRESET', committed: null });
      assert.deepEqual(journal, ['BEGIN', 'delay', 'COMMIT', 'destroy', 'instant']);
    });

    check(`of ${name} whose ROLLBACK fails gives no broken connection back`, async (t) => {
      const journal = [];
      await serve(t, { journal });
      const pool = poolOf(journal, { ROLLBACK: new Error('the connection was lost') });
      const failing = () => Promise.reject(new Error('first'));
      await assert.rejects(ksync.transaction(pool, failing), { message: 'first', committed: false });
      assert.deepEqual(journal, ['BEGIN', 'ROLLBACK', 'destroy']);
    });
  }

  check('waits with COMMIT for all answers, and sends without waiting', async (t) => {
    const journal = [];
    const answers = [];
    const reply = ({ op }) => (op === 'delay' ? new Promise((resolve) => answers.push(() => resolve(OK))) : OK);
    const server = await serve(t, { journal, reply });
    let hasEnded = false;
    const committing = ksync.transaction(pgPool(journal), async (tx) => {
      tx.saved('products', 7);
      tx.touched('products', 8);
      tx.destroyed('orders', 'a', { id: 'a', shop: 1 });
      await eventually('all three were sent, though the body has not ended', () => answers.length === 3);
      hasEnded = true;
    });
    await eventually('the body has ended', () => hasEnded);
    // In any order.
    answers[2]();
    answers[0]();
    const other = ksync.begin();
    other.saved('products', 9);
    await eventually('the other one was sent', () => answers.length === 4);
    answers[3]();
    await other.covered(); // so those before it are read, too
    assert.ok(!journal.includes('COMMIT'), journal.join());
    answers[1]();
    await committing;
    assert.deepEqual(asked(server), [['delay', '7'], ['delay', '8'], ['delay', 'a'], ['delay', '9'], ['instant']]);
    assert.deepEqual(server.requests[2].messages[0], { topic: 'orders', key: 'a', payload: { id: 'a', shop: 1 } });
    assert.deepEqual(server.requests.map(({ tx }) => tx === server.requests[0].tx), [true, true, true, false, true]);
  });

  check('without changes asks nothing', async (t) => {
    const journal = [];
    await serve(t, { journal });
    await ksync.transaction(pgPool(journal), async () => {}, 'BEGIN ISOLATION LEVEL SERIALIZABLE');
    assert.deepEqual(journal, ['BEGIN ISOLATION LEVEL SERIALIZABLE', 'COMMIT', 'release']);
  });

  check('fails before COMMIT where its delay messages are refused', async (t) => {
    const journal = [];
    const reply = ({ op }) => (op === 'delay' ? { ok: false, error: 'Kafka is away for 3.0 s' } : OK);
    await serve(t, { journal, reply });
    await assert.rejects(ksync.transaction(pgPool(journal), one), (error) => {
      assert.ok(error instanceof ksync.KsyncError);
      assert.deepEqual([error.message, error.committed], ['Kafka is away for 3.0 s; the database has not committed', false]);
      return true;
    });
    await eventually('it is forgotten', () => journal.includes('forget'));
    assert.deepEqual(journal, ['BEGIN', 'delay', 'ROLLBACK', 'release', 'forget']);
  });

  check('fails before COMMIT where a payload, or an id, was none, though the exception was caught', async (t) => {
    for (const told of [['products', 8, { price: 5n }], ['products', undefined]]) {
      const journal = [];
      await serve(t, { journal });
      const catching = async (tx) => {
        tx.saved('products', 7);
        assert.throws(() => tx.saved(...told), TypeError);
      };
      const message = /(BigInt|undefined).*; the database has not committed$/;
      await assert.rejects(ksync.transaction(pgPool(journal), catching), { message, committed: false });
      await eventually('it is forgotten', () => journal.includes('forget'));
      assert.ok(!journal.includes('COMMIT'), journal.join());
    }
  });

  check('sends what it has sent long ago once more before COMMIT', async (t) => {
    for (const [seconds, again] of [[29, []], [31, [['delay', '7', '8']]]]) {
      const journal = [];
      const server = await serve(t, { journal });
      const wait = clock(t);
      await ksync.transaction(pgPool(journal), async (tx) => {
        tx.saved('products', 7);
        await answersAreRead();
        tx.saved('products', 8);
        await answersAreRead();
        server.requests.length = 0;
        wait(seconds);
      });
      assert.deepEqual(asked(server), [...again, ['instant']], `${seconds} s`);
      const before = journal.slice(0, journal.indexOf('COMMIT')).filter((entry) => entry === 'delay');
      assert.equal(before.length, 4 + again.length);
      t.mock.restoreAll();
    }
  });

  check('fails before COMMIT where what it has sent long ago is refused now', async (t) => {
    const journal = [];
    let isAway = false;
    await serve(t, { journal, reply: ({ op }) => (isAway && op === 'delay' ? { ok: false, error: 'Kafka is away' } : OK) });
    const wait = clock(t);
    const waiting = async (tx) => {
      tx.saved('products', 7);
      await answersAreRead();
      isAway = true;
      wait(31);
    };
    const message = 'Kafka is away; the database has not committed';
    await assert.rejects(ksync.transaction(pgPool(journal), waiting), { message, committed: false });
    assert.ok(!journal.includes('COMMIT'), journal.join());
  });

  check('fails before COMMIT where nobody is at the socket', async (t) => {
    const journal = [];
    process.env.KSYNC_SOCKET = path.join(directory(t), 'nobody.sock');
    await assert.rejects(ksync.transaction(pgPool(journal), one), (error) => {
      assert.match(error.message, /^cannot reach ksync-stream at .*nobody\.sock: .*ENOENT.*; the database has not committed$/);
      return error.committed === false;
    });
    assert.deepEqual(journal, ['BEGIN', 'ROLLBACK', 'release']);
  });

  check('fails before COMMIT by an error of another realm, too, as libraries of tests make them', async (t) => {
    const journal = [];
    process.env.KSYNC_SOCKET = path.join(directory(t), 'another.sock');
    t.mock.method(net, 'connect', () => runInNewContext('throw new TypeError("no socket")'));
    const message = 'no socket; the database has not committed';
    await assert.rejects(ksync.transaction(pgPool(journal), one), { message, committed: false });
    assert.deepEqual(journal, ['BEGIN', 'ROLLBACK', 'release']);
  });

  check('fails before COMMIT where no answer comes in time', async (t) => {
    const journal = [];
    await serve(t, { journal, reply: ({ op }) => (op === 'delay' ? null : OK) });
    process.env.KSYNC_ANSWER_TIMEOUT = '0.05';
    const message = 'ksync-stream has not answered within 0.05 s; the database has not committed';
    await assert.rejects(ksync.transaction(pgPool(journal), one), { message, committed: false });
    assert.ok(!journal.includes('COMMIT'));
  });

  check('takes an answer that came while the event loop was busy', async (t) => {
    const script = `
      const ksync = require(${JSON.stringify(require.resolve('./ksync.js'))});
      (async () => {
        await ksync.bulk('products', [1], () => {}); // now it is connected
        const tx = ksync.begin();
        tx.saved('products', 7);
        const until = Date.now() + 1500;
        while (Date.now() < until);
        await tx.covered();
      })().catch((error) => { console.error(error); process.exit(1); });`;
    await serve(t);
    const env = { ...process.env, KSYNC_ANSWER_TIMEOUT: '1' };
    const child = spawn(process.execPath, ['-e', script], { env, stdio: ['ignore', 'ignore', 'inherit'] });
    assert.deepEqual(await once(child, 'exit'), [0, null]);
  });

  check('goes on with KSYNC_ON_ERROR=log, loudly, and tells all once ksync-stream is there', async (t) => {
    const journal = [];
    const lines = logged(t);
    const at = path.join(directory(t), 'stream.sock');
    process.env.KSYNC_SOCKET = at;
    process.env.KSYNC_ON_ERROR = 'log';
    await ksync.transaction(pgPool(journal), one);
    assert.deepEqual(journal, ['BEGIN', 'COMMIT', 'release']);
    assert.match(lines()[0], /^ksync: A TRANSACTION GOES ON WITHOUT DELAY MESSAGES: cannot reach ksync-stream at /);
    assert.match(lines()[1], /^ksync: the database has committed, but changes are not announced at once: cannot reach /);
    const tx = ksync.begin();
    tx.saved('products', 8);
    await tx.covered();
    const server = await serve(t, { at });
    await tx.committed();
    assert.deepEqual(asked(server), [['instant', '8']]);
  });

  check('is committed whatever becomes of its instant messages', async (t) => {
    const journal = [];
    const lines = logged(t);
    const error = 'cannot send the instant messages; the delay messages cover the change';
    await serve(t, { journal, reply: ({ op }) => (op === 'instant' ? { ok: false, error } : OK) });
    await ksync.transaction(pgPool(journal), one);
    assert.deepEqual(journal, ['BEGIN', 'delay', 'COMMIT', 'release', 'instant', 'instant']);
    assert.deepEqual(lines(), [`ksync: the database has committed, but changes are not announced at once: ${error}`]);
  });

  check('fails where Postgres answers COMMIT by ROLLBACK', async (t) => {
    const journal = [];
    await serve(t, { journal });
    const pool = pgPool(journal, { COMMIT: { command: 'ROLLBACK' } });
    await assert.rejects(ksync.transaction(pool, one), { committed: false, message: /^the database has rolled back at COMMIT/ });
    await eventually('it is forgotten', () => journal.includes('forget'));
    assert.ok(!journal.includes('instant'));
  });

  check('says what Postgres has refused at COMMIT, and what may have come after it', async (t) => {
    for (const [severity, code, committed] of [
      ['ERROR', '23505', false],
      ['ERROR', '40001', false],
      ['ERROR', '40003', null], // "statement completion unknown": CockroachDB
      ['ERROR', 'XXA00', null], // "transaction committed with schema change failure": CockroachDB
      ['ERROR', '08P01', null], // a pooler that has lost the server
      ['FATAL', '57P01', null],
    ]) {
      const journal = [];
      await serve(t, { journal });
      const pool = pgPool(journal, { COMMIT: Object.assign(new Error('refused'), { severity, code }) });
      await assert.rejects(ksync.transaction(pool, one), { code, committed });
      await eventually('its end is told', () => journal.includes(committed === false ? 'forget' : 'instant'));
    }
  });

  check('survives that pg emits an error between two queries', async (t) => {
    const journal = [];
    await serve(t, { journal });
    const pool = pgPool(journal, { 'SELECT 1': new Error('Connection terminated unexpectedly') });
    const broken = ksync.transaction(pool, async (tx) => {
      tx.client.emit('error', new Error('Connection terminated unexpectedly'));
      await tx.query('SELECT 1');
    });
    await assert.rejects(broken, { message: 'Connection terminated unexpectedly', committed: false });
  });

  for (const [name, method] of [['pg', 'connect'], ['mysql2', 'getConnection']]) {
    check(`that gets no connection of ${name} is not committed`, async () => {
      const error = new Error('timeout exceeded when trying to connect');
      await assert.rejects(ksync.transaction({ [method]: () => Promise.reject(error) }, one), (thrown) => thrown === error);
      assert.equal(error.committed, false);
    });
  }

  check('refuses what comes after its end', async (t) => {
    const journal = [];
    const server = await serve(t, { journal });
    let late;
    await ksync.transaction(pgPool(journal), async (tx) => {
      late = tx;
    });
    assert.throws(() => late.saved('products', 7), { message: /^a change came after the end of its transaction/ });
    await assert.rejects(late.query('UPDATE products'), { message: 'the transaction is over' });
    assert.deepEqual([journal, server.requests], [['BEGIN', 'COMMIT', 'release'], []]);
  });
});

describe('the connection', () => {
  check('is one for transactions side by side', async (t) => {
    const server = await serve(t);
    const ids = Array.from({ length: 50 }, (_, id) => id);
    await Promise.all(ids.map((id) => ksync.transaction(pgPool([]), async (tx) => tx.saved('products', id))));
    assert.deepEqual([server.connections, server.requests.length], [1, 100]);
    assert.equal(new Set(server.requests.map(({ tx }) => tx)).size, 50);
  });

  check('is made anew once where it broke under a request', async (t) => {
    const reply = ({ op }, server) => {
      if (op === 'delay' && server.connections === 1) server.cut();
      return OK;
    };
    const server = await serve(t, { reply });
    await ksync.transaction(pgPool([]), one);
    assert.deepEqual(server.requests.map(({ op, connection }) => [op, connection]), [['delay', 1], ['delay', 2], ['instant', 2]]);
  });

  check('counts as unreachable where it breaks twice', async (t) => {
    const server = await serve(t, { reply: (_, its) => its.cut() });
    await assert.rejects(ksync.transaction(pgPool([]), one), { message: /^cannot reach ksync-stream at /, committed: false });
    assert.equal(server.connections, 2);
  });

  check('of another kind is no reason to crash', async (t) => {
    const at = path.join(directory(t), 'other.sock');
    const other = net.createServer((socket) => socket.on('error', () => {}).end('220 ready\n')).listen(at);
    await once(other, 'listening');
    t.after(() => other.close());
    process.env.KSYNC_SOCKET = at;
    await assert.rejects(ksync.transaction(pgPool([]), one), { message: /^cannot reach ksync-stream at /, committed: false });
  });

  check('that broke after the acknowledgement costs nothing: the instant request brings all messages along', async (t) => {
    const server = await serve(t);
    const tx = ksync.begin();
    tx.saved('products', 7);
    await tx.covered();
    await cut(server);
    await tx.committed();
    assert.deepEqual(asked(server), [['delay', '7'], ['instant', '7']]);
    assert.equal(server.requests[1].connection, 2);
  });

  check('that broke in the middle of a transaction, too', async (t) => {
    const server = await serve(t);
    const tx = ksync.begin();
    tx.saved('products', 7);
    await answersAreRead();
    await cut(server);
    tx.saved('products', 8);
    tx.saved('products', 8);
    await tx.covered();
    await tx.committed();
    const own = server.requests.filter((request) => request.tx === server.requests[0].tx);
    const again = ['delay', '7', '8']; // the new server is to send it all again, too, while the transaction lasts
    assert.deepEqual(asked({ requests: own }), [['delay', '7'], ['delay', '8'], ['delay', '8'], again, ['instant']]);
  });

  check('that broke in a transaction which changes nothing more is noticed before COMMIT', async (t) => {
    const server = await serve(t);
    await ksync.transaction(pgPool([]), async (tx) => {
      tx.saved('products', 7);
      await answersAreRead();
      await cut(server);
    });
    const own = server.requests.filter((request) => request.tx === server.requests[0].tx);
    assert.deepEqual(own.map(({ op, connection }) => [op, connection]), [['delay', 1], ['delay', 2], ['instant', 2]]);
  });

  check('that broke gets only the last payload of each record', async (t) => {
    const server = await serve(t);
    const tx = ksync.begin();
    for (const price of [1, 2, 1]) tx.saved('products', 7, { price });
    tx.saved('orders', 7);
    await tx.covered();
    await cut(server);
    await tx.committed();
    const [{ messages }] = server.requests.filter(({ op }) => op === 'instant');
    assert.deepEqual(messages.map(({ topic, payload }) => [topic, payload]), [['products', { price: 1 }], ['orders', { id: 7 }]]);
  });

  check('to a server that does not know the transaction is asked again, with all messages', async (t) => {
    const unknown = { ok: false, error: 'tx "t1" is not known here, or not any more; send its messages along' };
    const server = await serve(t, { reply: ({ op, messages }) => (op === 'instant' && !messages ? unknown : OK) });
    const lines = logged(t);
    await ksync.transaction(pgPool([]), one);
    assert.deepEqual([asked(server), lines()], [[['delay', '7'], ['instant'], ['instant', '7']], []]);
  });

  check('to a server that has not sent all delay messages is asked again, with all messages', async (t) => {
    const error = 'cannot send the instant messages, and not all delay messages were sent; announce the change once more';
    const server = await serve(t, { reply: ({ op, messages }) => (op === 'instant' && !messages ? { ok: false, error } : OK) });
    const lines = logged(t);
    await ksync.transaction(pgPool([]), one);
    assert.deepEqual([asked(server), lines()], [[['delay', '7'], ['instant'], ['instant', '7']], []]);
  });

  check('that does not answer is waited for once after COMMIT', async (t) => {
    process.env.KSYNC_ANSWER_TIMEOUT = '0.1';
    const server = await serve(t, { reply: ({ op }) => (op === 'instant' ? null : OK) });
    const lines = logged(t);
    await ksync.transaction(pgPool([]), one);
    assert.deepEqual([asked(server), lines().length], [[['delay', '7'], ['instant']], 1]);
  });

  check('does not keep a script from its end', async (t) => {
    const server = await serve(t);
    const script = `
      const ksync = require(${JSON.stringify(require.resolve('./ksync.js'))});
      ksync.bulk('products', [7], () => {}).then(() => console.log('done'));`;
    const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    child.stdout.setEncoding('utf8');
    let said = '';
    child.stdout.on('data', (text) => (said += text));
    assert.deepEqual(await once(child, 'close'), [0, null]);
    assert.deepEqual([said, asked(server)], ['done\n', [['delay', '7'], ['instant']]]);
  }, { timeout: 20_000 });
});

check('a record key is the text of the primary key', () => {
  const sent = ksync.collect();
  for (const [id, key, payload] of [
    [7, '7', { id: 7 }],
    [-1.5, '-1.5', { id: -1.5 }],
    [7n, '7', { id: 7 }],
    ['é"\n', 'é"\n', { id: 'é"\n' }],
    ['', '', { id: '' }],
    [[1, 'a'], '[1,"a"]', { id: [1, 'a'] }],
    [[1n, 'é', 2], '[1,"é",2]', { id: [1, 'é', 2] }],
  ]) {
    ksync.begin().saved('products', id);
    assert.deepEqual(sent.splice(0)[0].messages, [{ topic: 'products', key, payload }]);
  }
  for (const id of [undefined, null, NaN, Infinity, 2 ** 53, {}, new Date(0), [], [1, null], true]) {
    assert.throws(() => ksync.begin().saved('products', id), TypeError);
  }
});

check('a BigInt that no number can hold is sent with all its digits', async (t) => {
  const server = await serve(t);
  await ksync.bulk('products', [18446744073709551615n], () => {});
  const message = '{"topic":"products","key":"18446744073709551615","payload":{"id":18446744073709551615}}';
  assert.ok(server.lines[0].endsWith(`"op":"delay","messages":[${message}]}`), server.lines[0]);
});

check('no request is longer than the 16 MiB that ksync-stream takes', async (t) => {
  const server = await serve(t);
  await ksync.transaction(pgPool([]), async (tx) => {
    tx.cover(Array.from({ length: 30 }, (_, n) => ['products', n, { text: 'é'.repeat(300_000) }]));
  });
  const lengths = server.lines.map((line) => Buffer.byteLength(line));
  assert.ok(lengths.every((length) => length < 16 << 20), String(lengths));
  assert.deepEqual(asked(server).flatMap(([, ...keys]) => keys), Array.from({ length: 30 }, (_, n) => String(n)));
  assert.deepEqual(asked(server).at(-1), ['instant']);
});

describe('bulk', () => {
  check('sends the delay messages of all ids, does it, and sends their instant messages', async (t) => {
    const journal = [];
    const server = await serve(t, { journal });
    const ids = new Set([7, 'a', [1, 2]]);
    const result = await ksync.bulk('products', ids, async () => {
      journal.push('UPDATE');
      ids.clear();
      return 3;
    });
    assert.equal(result, 3);
    assert.deepEqual(journal, ['delay', 'UPDATE', 'instant']);
    assert.deepEqual(asked(server), [['delay', '7', 'a', '[1,2]'], ['instant']]);
  });

  check('does nothing where the delay messages are refused', async (t) => {
    const journal = [];
    await serve(t, { journal, reply: ({ op }) => (op === 'delay' ? { ok: false, error: 'Kafka is away' } : OK) });
    const message = 'Kafka is away; the database has not committed';
    await assert.rejects(ksync.bulk('products', [7], () => journal.push('UPDATE')), { message, committed: false });
    await eventually('it is forgotten', () => journal.includes('forget'));
    assert.deepEqual(journal, ['delay', 'forget']);
  });

  check('forgets where what it does fails', async (t) => {
    const journal = [];
    await serve(t, { journal });
    const failing = () => {
      throw new Error('deadlock');
    };
    await assert.rejects(ksync.bulk('products', [7], failing), { message: 'deadlock' });
    await eventually('it is forgotten', () => journal.includes('forget'));
    assert.deepEqual(journal, ['delay', 'forget']);
  });

  check('of many ids asks for some of them at once', async (t) => {
    const unknown = { ok: false, error: 'tx is not known here' };
    const server = await serve(t, { reply: ({ op, messages }) => (op === 'instant' && !messages ? unknown : OK) });
    const ids = Array.from({ length: 1001 }, (_, n) => n);
    await ksync.bulk('products', ids, () => {});
    const counts = (op) => [250, 250, 250, 250, 1].map((count) => [op, count]);
    const told = asked(server).map(([op, ...keys]) => [op, keys.length]);
    assert.deepEqual(told, [...counts('delay'), ['instant', 0], ...counts('instant')]);
    assert.deepEqual(asked(server).flatMap(([, ...keys]) => keys.map(Number)), [...ids, ...ids]);
  });

  check('of no ids asks nothing', async (t) => {
    const server = await serve(t);
    assert.equal(await ksync.bulk('products', [], () => 'done'), 'done');
    assert.deepEqual(server.requests, []);
  });
});

check('KSYNC_DISABLED=1 sends nothing and fails at nothing', async (t) => {
  const journal = [];
  const server = await serve(t, { journal });
  process.env.KSYNC_DISABLED = '1';
  await ksync.transaction(pgPool(journal), async (tx) => tx.saved('products', undefined));
  assert.equal(await ksync.bulk('products', [7], () => 'done'), 'done');
  assert.deepEqual([journal, server.requests], [['BEGIN', 'COMMIT', 'release'], []]);
});

check('collect keeps what would have been sent', async () => {
  process.env.KSYNC_SOCKET = '/nowhere';
  const sent = ksync.collect();
  await ksync.transaction(pgPool([]), async (tx) => {
    tx.saved('products', 7);
    tx.destroyed('orders', 'a', { shop: 1 });
    tx.saved('products', 7);
  });
  const [product, order] = [
    { topic: 'products', key: '7', payload: { id: 7 } },
    { topic: 'orders', key: 'a', payload: { shop: 1 } },
  ];
  assert.deepEqual(sent.splice(0).map(({ op, messages }) => ({ op, messages })), [
    { op: 'delay', messages: [product] },
    { op: 'delay', messages: [order] },
    { op: 'delay', messages: [product] },
    { op: 'instant', messages: [product, order] },
  ]);
  const failing = async (tx) => {
    tx.saved('products', 7);
    throw new Error('no');
  };
  await assert.rejects(ksync.transaction(pgPool([]), failing), { message: 'no' });
  assert.deepEqual(sent.map(({ op }) => op), ['delay', 'forget']);
});

/** A worker as ksync-consume --worker starts it, whose records say what it is to do. */
class Worker {
  static SCRIPT = `
    const ksync = require(${JSON.stringify(require.resolve('./ksync.js'))});
    ksync.work(async (records, batch) => {
      console.log('printed', batch.topic);
      process.stdout.write('without a line break');
      const told = records.map(({ payload }) => payload ?? {});
      if (told.some(({ waits }) => waits)) await new Promise((resolve) => setTimeout(resolve, 200));
      if (told.some(({ throws }) => throws)) throw new Error('a bug');
      if (told.some(({ isAway }) => isAway)) throw Object.assign(new Error('the store is away'), { backoff: 70 });
      if (told.some(({ returns }) => returns)) return told[0].returns;
      const failed = records.filter(({ payload }) => payload !== null && payload.id === undefined);
      const named = failed.map(({ offset }) => ({ offset, error: new Error('no id'), permanent: true }));
      if (told.some(({ raises }) => raises)) throw Object.assign(new Error('some failed'), { failed: named });
      return named.length > 0 ? named : undefined;
    });`;

  constructor(t) {
    this.said = { stdout: '', stderr: '' };
    this.child = spawn(process.execPath, ['-e', Worker.SCRIPT], { stdio: 'pipe' });
    t.after(() => this.child.kill('SIGKILL'));
    for (const name of ['stdout', 'stderr']) this.child[name].setEncoding('utf8').on('data', (text) => (this.said[name] += text));
    this.ended = once(this.child, 'close');
  }

  tell(...messages) {
    this.child.stdin.write(messages.map((message) => `${JSON.stringify(message)}\n`).join(''));
  }

  records(...payloads) {
    const record = { topic: 'products', partition: 0, key: '7', headers: [] };
    this.tell(...payloads.map((payload, offset) => ({ ...record, offset, payload })));
  }

  batch(id, ...payloads) {
    this.tell({ type: 'batch', id, topic: 'products', partition: 0, term: 1, count: payloads.length, attempt: 1 });
    this.records(...payloads);
  }

  /** The answers, once there are so many. */
  async answers(count) {
    await eventually(`${count} answers of ${JSON.stringify(this.said)}`, () => this.said.stdout.split('\n').length > count);
    return this.said.stdout.trimEnd().split('\n').map((line) => JSON.parse(line));
  }
}

describe('a worker', { timeout: 30_000 }, () => {
  check('answers each batch, and prints to stderr only', async (t) => {
    const worker = new Worker(t);
    worker.tell({ type: 'hello', ksync: 1, name: 'indexer' });
    await worker.answers(1);
    worker.batch('b1', { id: 7, name: 'x\u2028é' }, null);
    worker.tell({ type: 'end', id: 'b1' });
    await worker.answers(2);
    worker.batch('b2', { id: 7 }, { no: 8 });
    worker.tell({ type: 'end', id: 'b2' });
    await worker.answers(3);
    worker.batch('b3', { raises: true });
    worker.tell({ type: 'end', id: 'b3' });
    await worker.answers(4);
    worker.batch('b4', { isAway: true });
    worker.tell({ type: 'of-a-later-version' }, { type: 'end', id: 'b4' });
    assert.deepEqual(await worker.answers(5), [
      { type: 'ready' },
      { type: 'done', id: 'b1', failed: [] },
      { type: 'done', id: 'b2', failed: [{ offset: 1, error: 'no id', permanent: true }] },
      { type: 'done', id: 'b3', failed: [{ offset: 0, error: 'no id', permanent: true }] },
      { type: 'backoff', id: 'b4', ms: 70 },
    ]);
    worker.tell({ type: 'shutdown' });
    assert.deepEqual(await worker.ended, [0, null]);
    assert.equal(worker.said.stderr.split('printed products\nwithout a line break').length, 5);
  });

  check('forgets a batch that is cancelled before its end, and answers one that is cancelled after it', async (t) => {
    const worker = new Worker(t);
    worker.batch('b1', { id: 1 });
    worker.tell({ type: 'cancel', id: 'b1' });
    worker.batch('b2', { id: 2 }, { waits: true, id: 3 });
    worker.tell({ type: 'end', id: 'b2' }, { type: 'cancel', id: 'b2' });
    await worker.answers(1);
    worker.batch('b3', { id: 4 });
    worker.tell({ type: 'end', id: 'b3' });
    assert.deepEqual(await worker.answers(2), [
      { type: 'done', id: 'b2', failed: [] },
      { type: 'done', id: 'b3', failed: [] },
    ]);
  });

  check('ends with its stdin, but not before its batch', async (t) => {
    const worker = new Worker(t);
    worker.batch('b1', { waits: true, id: 1 });
    worker.tell({ type: 'end', id: 'b1' });
    worker.child.stdin.end();
    assert.deepEqual(await worker.ended, [0, null]);
    assert.deepEqual(await worker.answers(1), [{ type: 'done', id: 'b1', failed: [] }]);
  });

  for (const [what, payload, stderr] of [
    ['any other exception', { throws: true }, /Error: a bug/],
    ['a result that is no list of failed records', { returns: { took: 3, errors: true } }, /TypeError: /],
    ['a list of something else', { returns: [null] }, /TypeError: /],
  ]) {
    check(`ends by ${what}, without an answer`, async (t) => {
      const worker = new Worker(t);
      worker.batch('b1', payload);
      worker.tell({ type: 'end', id: 'b1' });
      assert.deepEqual(await worker.ended, [1, null]);
      assert.equal(worker.said.stdout, '');
      assert.match(worker.said.stderr, stderr);
    });
  }
});

function realPg() {
  if (!/^postgres(ql)?:/.test(process.env.DATABASE_URL ?? '')) return null;
  try {
    return require('pg');
  } catch (error) {
    if (error.code === 'MODULE_NOT_FOUND') return null;
    throw error;
  }
}

const pg = realPg();

describe('with Postgres', { skip: pg ? false : 'needs DATABASE_URL=postgres://.. and the package pg' }, () => {
  let tables = 0;

  /** A pool, and a table of the test's own with the record 7, whose price is 1. */
  async function real(t) {
    const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
    const table = `ksync_node_${process.pid}_${++tables}`;
    pool.on('error', () => {});
    t.after(async () => {
      await pool.query(`DROP TABLE ${table}`);
      await pool.end();
    });
    await pool.query(`CREATE TABLE ${table} (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, price int)`);
    await pool.query(`INSERT INTO ${table} VALUES (7, 1)`);
    const price = async () => (await pool.query(`SELECT price FROM ${table} WHERE id = 7`)).rows[0].price;
    const change = async (tx) => {
      await tx.query(`UPDATE ${table} SET price = $1 WHERE id = $2`, [500, 7]);
      tx.saved('products', 7);
    };
    return { pool, table, price, change };
  }

  check('a change is there when its instant messages are sent, and not before its delay messages are acknowledged', async (t) => {
    const { pool, price, change } = await real(t);
    const seen = [];
    const server = await serve(t, {
      reply: async ({ op }) => {
        seen.push([op, await price()]);
        return OK;
      },
    });
    await ksync.transaction(pool, change);
    assert.deepEqual([seen, asked(server)], [[['delay', 1], ['instant', 500]], [['delay', '7'], ['instant']]]);
    assert.equal(pool.idleCount, pool.totalCount);
  });

  check('an exception rolls back', async (t) => {
    const { pool, price, change } = await real(t);
    const server = await serve(t);
    const failing = async (tx) => {
      await change(tx);
      throw new Error('no');
    };
    await assert.rejects(ksync.transaction(pool, failing), { message: 'no', committed: false });
    assert.equal(await price(), 1);
    await eventually('it is forgotten', () => server.requests.at(-1)?.op === 'forget');
  });

  check('a failed statement that was passed over is found at COMMIT', async (t) => {
    const { pool, price, change } = await real(t);
    await serve(t);
    const swallowing = async (tx) => {
      await change(tx);
      await tx.query('SELECT 1 / 0').catch(() => {});
    };
    await assert.rejects(ksync.transaction(pool, swallowing), { message: /rolled back at COMMIT/, committed: false });
    assert.equal(await price(), 1);
  });

  check('a constraint that is looked at by COMMIT only refuses it', async (t) => {
    const { pool, table } = await real(t);
    const server = await serve(t);
    const doubling = async (tx) => {
      await tx.query(`INSERT INTO ${table} VALUES (7, 2)`);
      tx.saved('products', 7);
    };
    await assert.rejects(ksync.transaction(pool, doubling), { code: '23505', committed: false });
    await eventually('it is forgotten', () => server.requests.at(-1)?.op === 'forget');
  });

  check('a session that is ended leaves no broken client in the pool', async (t) => {
    const { pool, price, change } = await real(t);
    await serve(t);
    const ended = ksync.transaction(pool, async (tx) => {
      await change(tx);
      // Heard of between two queries.
      const end = new Promise((resolve) => { tx.client.once('end', resolve); });
      await pool.query('SELECT pg_terminate_backend($1)', [tx.client.processID]);
      await end;
      await tx.query('SELECT 1');
    });
    await assert.rejects(ended, { committed: false });
    assert.equal(await price(), 1);
  }, { timeout: 20_000 });
});

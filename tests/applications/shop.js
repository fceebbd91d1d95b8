// As shop.rb, with pg or, if DATABASE_URL says so, mysql2.
const ksync = require('ksync');
const readline = require('node:readline');
const url = process.env.DATABASE_URL;
const topic = process.env.TOPIC;
const pool = url.startsWith('mysql')
  ? require('mysql2/promise').createPool(url)
  : new (require('pg').Pool)({ connectionString: url });

async function perform(command, id, price, ...more) {
  const update = (price) => `UPDATE products SET price = ${price} WHERE id = ${id}`;
  const change = (told, ...statements) => ksync.transaction(pool, async (tx) => {
    for (const sql of statements) {
      await tx.query(sql);
      tx[told](topic, id);
    }
    if (command === 'rollback') throw new Error('rolled back');
  });
  switch (command) {
    case 'create': return change('saved', `INSERT INTO products (id, price) VALUES (${id}, ${price})`);
    case 'update': return change('saved', update(price));
    case 'touch': return change('touched', `UPDATE products SET updated_at = now() WHERE id = ${id}`);
    case 'destroy': return change('destroyed', `DELETE FROM products WHERE id = ${id}`);
    case 'twice': return change('saved', update(0), update(1));
    case 'both': return ksync.transaction(pool, async (tx) => {
      for (const each of [id, price]) {
        await tx.query(`UPDATE products SET price = 3 WHERE id = ${each}`);
        tx.saved(topic, each);
      }
    });
    case 'long': // the client takes a delay message for old after a second of these
      ksync.begin().constructor.FRESH_MS = 1000;
      return ksync.transaction(pool, async (tx) => {
        await tx.query(update(price));
        tx.saved(topic, id);
        await tx.query(`SELECT pg_sleep(${more[0]})`);
      });
    case 'rollback': return change('saved', update(price)).catch((error) => error.message === 'rolled back' || Promise.reject(error));
    case 'bulk': {
      const ids = [id, price, ...more];
      return ksync.bulk(topic, ids, () => pool.query(`UPDATE products SET price = 7 WHERE id IN (${ids})`));
    }
    default: throw new Error('no such command');
  }
}

async function main() {
  console.error('ready');
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [command, ...numbers] = line.split(' ');
    await perform(command, ...numbers.map(Number)).then(
      () => console.error(`did ${line}`),
      (error) => console.error(`failed ${line}: ${error.message}`),
    );
  }
  await pool.end();
}
main();

//! The clients in examples/ for applications in Ruby, Python and Node: with their real frameworks, ksync-stream and Postgres.

use std::path::{Path, PathBuf};

use crate::stream::delayed;
use crate::support::{Client, End, Primary, World, block_on, primaries};

const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// An application that saves a record, saves two in a transaction, rolls one back, and changes both in bulk; then it tells of one
/// that it deletes.
const RUBY: &str = r#"
require "active_record"
require "./examples/ruby/ksync"
ActiveRecord::Base.establish_connection(ENV["DATABASE_URL"])
class Product < ActiveRecord::Base
  include Ksync::Model
  def self.kafka_topic = ENV["TOPIC"]
end
Product.create!(id: 1, price: 1)
Product.transaction { Product.find(1).update!(price: 2); Product.create!(id: 2, price: 2) }
Product.transaction { Product.create!(id: 3, price: 3); raise ActiveRecord::Rollback }
Ksync.bulk(Product.order(:id)) { |products| Product.where(id: products.map(&:id)).update_all(price: 7) }
Product.find(2).destroy!
"#;

const SQLALCHEMY: &str = r#"
import os, sys
sys.path.insert(0, "examples/python")
import ksync, sqlalchemy
from sqlalchemy import orm
class Base(orm.DeclarativeBase): pass
class Product(Base):
    __tablename__, __ksync_topic__ = "products", os.environ["TOPIC"]
    id, price = orm.mapped_column(sqlalchemy.Integer, primary_key=True), orm.mapped_column(sqlalchemy.Integer)
Session = orm.sessionmaker(sqlalchemy.create_engine(os.environ["DATABASE_URL"].replace("postgres:", "postgresql+psycopg:")))
ksync.announce(Session)
with Session.begin() as session: session.add(Product(id=1, price=1))
with Session.begin() as session:
    session.get(Product, 1).price = 2
    session.add(Product(id=2, price=2))
with Session() as session:
    session.add(Product(id=3, price=3))
    session.flush()
    session.rollback()
with Session.begin() as session:
    with ksync.bulk(session.scalars(sqlalchemy.select(Product).order_by(Product.id)), session):
        session.execute(sqlalchemy.update(Product).values(price=7))
with Session.begin() as session: session.delete(session.get(Product, 2))
"#;

const DJANGO: &str = r#"
import os, sys
from urllib.parse import unquote, urlsplit
sys.path.insert(0, "examples/python")
import django
from django.conf import settings
at = urlsplit(os.environ["DATABASE_URL"])
settings.configure(INSTALLED_APPS=[], DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "HOST": at.hostname, "PORT": at.port, "USER": at.username,
    "NAME": at.path[1:], "OPTIONS": {"options": unquote(at.query.partition("=")[2])}}})
django.setup()
import ksync
from django.db import models, transaction
class Product(models.Model):
    __ksync_topic__ = os.environ["TOPIC"]
    id, price = models.IntegerField(primary_key=True), models.IntegerField()
    objects = ksync.QuerySet.as_manager()
    class Meta: app_label, db_table = "shop", "products"
ksync.announce(Product)
Product.objects.create(id=1, price=1)
with transaction.atomic():
    Product(id=1, price=2).save()
    Product.objects.create(id=2, price=2)
with transaction.atomic():
    Product.objects.create(id=3, price=3)
    transaction.set_rollback(True)
Product.objects.order_by("id").update(price=7)
Product.objects.get(id=2).delete()
"#;

const NODE: &str = r#"
const ksync = require('./examples/node/ksync')
const { Pool } = require('pg')
const topic = process.env.TOPIC
const main = async () => {
  const pool = new Pool({ connectionString: process.env.DATABASE_URL })
  const change = (sql, ids) => ksync.transaction(pool, async (tx) => {
    await tx.query(sql)
    for (const id of ids) tx.saved(topic, id)
    if (sql.includes('(3')) throw new Error('roll it back')
  })
  await change('INSERT INTO products VALUES (1, 1)', [1])
  await change('UPDATE products SET price = 2; INSERT INTO products VALUES (2, 2)', [1, 2])
  await change('INSERT INTO products VALUES (3, 3)', [3]).catch((error) => { if (error.message !== 'roll it back') throw error })
  await ksync.bulk(topic, [1, 2], () => pool.query('UPDATE products SET price = 7'))
  await ksync.transaction(pool, async (tx) => {
    await tx.query('DELETE FROM products WHERE id = 2')
    tx.destroyed(topic, 2)
  })
  await pool.end()
}
main()
"#;

/// Its frameworks, and what `scripts/services install frameworks` has fetched of them.
pub fn environment(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), Path::new(PROJECT).join("target/servers").join(value).display().to_string())
}

/// A URL as the drivers of the languages take it.
fn url(primary: &Primary) -> String {
    primary.url.replace("options[search_path]=", "options=-csearch_path%3D")
}

fn serving(world: &World, topic: &str) -> (crate::support::Process, PathBuf) {
    let path = world.file("serve");
    let stream = world.stream(&format!("-t {topic} --serve {}", path.display()));
    drop(Client::to(world, &path));
    (stream, path)
}

#[test]
fn what_an_application_commits_is_announced_before_and_after_and_nothing_else() {
    let world = World::new("clients");
    let [postgres, ..] = block_on(primaries("clients"));
    let python = environment("PYTHONPATH", "python");
    let node = environment("NODE_PATH", "node/node_modules");
    for (name, program, flag, script, found) in [
        ("ruby", "ruby", "-e", RUBY, None),
        ("sqlalchemy", "python3", "-c", SQLALCHEMY, Some(&python)),
        ("django", "python3", "-c", DJANGO, Some(&python)),
        ("node", "node", "-e", NODE, Some(&node)),
    ] {
        block_on(
            postgres.execute("DROP TABLE IF EXISTS products; CREATE TABLE products (id INT PRIMARY KEY, price INT)"),
        );
        let topic = world.topic_with_delay(&format!("products-{name}"), 1);
        let (_stream, socket) = serving(&world, &topic);
        let mut command = std::process::Command::new(program);
        command.arg(flag).arg(script).current_dir(PROJECT).envs(found.map(|(name, value)| (name, value)));
        command.env("DATABASE_URL", url(&postgres)).env("TOPIC", &topic).env("KSYNC_SOCKET", &socket);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let of_phase = |ids: &[u32]| ids.iter().map(|id| format!("{{\"id\":{id}}}")).collect::<Vec<_>>();
        // As it is told by all of them: 1; 1 and 2; 3, which is rolled back; 1 and 2; 2.
        assert_eq!(sorted(delayed(&world, &topic)), of_phase(&[1, 1, 1, 2, 2, 2, 3]), "{name}");
        let records = world.kafka.records(&topic);
        assert!(
            records.iter().all(|record| record.value == Some(format!("{{\"id\":{}}}", record.key.as_ref().unwrap())))
        );
        let told = records.into_iter().map(|record| record.value.unwrap()).collect();
        assert_eq!(sorted(told), of_phase(&[1, 1, 1, 2, 2, 2]), "{name}");
        assert_eq!(block_on(postgres.texts("SELECT id || ' ' || price FROM products")), ["1 7"], "{name}");
    }
}

fn sorted(mut values: Vec<String>) -> Vec<String> {
    values.sort();
    values
}

#[test]
fn the_clients_pass_their_own_tests() {
    let world = World::new("clients-own");
    let [postgres, ..] = block_on(primaries("clients_own"));
    for (program, arguments, found) in [
        ("ruby", "examples/ruby/test_ksync.rb", None),
        ("python3", "examples/python/test_ksync.py", Some(environment("PYTHONPATH", "python"))),
        ("node", "--test examples/node/test_ksync.js", Some(environment("NODE_PATH", "node/node_modules"))),
    ] {
        let mut command = std::process::Command::new(program);
        command.args(arguments.split(' ')).current_dir(PROJECT).envs(found).env("DATABASE_URL", url(&postgres));
        let output = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments}: {said}");
        assert!(!said.to_lowercase().contains("skipped=") && !said.contains("# SKIP"), "{arguments}: {said}");
    }
    drop(world);
}

#[test]
fn the_clients_are_one_file_each_of_at_most_200_lines() {
    for client in ["ruby/ksync.rb", "python/ksync.py", "node/ksync.js"] {
        let text = std::fs::read_to_string(Path::new(PROJECT).join("examples").join(client)).unwrap();
        assert!(text.lines().count() <= 200, "{client} has {} lines", text.lines().count());
    }
}

/// Each client's worker side is put through the protocol of ksync-consume.
#[test]
fn the_workers_of_the_clients_pass_the_exam() {
    let world = World::new("clients-workers");
    let rb = "require './examples/ruby/ksync'; Ksync.work { |records| puts records.size }";
    let py = "import sys; sys.path.insert(0, 'examples/python'); import ksync; ksync.work(lambda records: print(len(records)))";
    let js = "require('./examples/node/ksync').work(async (records) => { console.log(records.length) })";
    for (program, flag, script) in [("ruby", "-e", rb), ("python3", "-c", py), ("node", "-e", js)] {
        let worker = world.script(&format!("cd {PROJECT}\nexec {program} {flag} \"{script}\""));
        let mut consumer = world.consume(&format!("--check-worker -- {worker}"));
        assert_eq!(consumer.wait(), End::Status(0), "{program}: {:?}", consumer.log());
    }
}

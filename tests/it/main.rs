//! The programs and their edges against real Kafka, ZooKeeper, Postgres and MariaDB.

#![allow(clippy::unwrap_used)] // In helpers of tests, too, which clippy.toml does not know as tests.

mod support;

mod command_lines;

mod application_faults;
mod application_wire;
mod bad_input;
mod brokers;
mod by_key;
mod clients;
mod clocks;
mod compressed;
mod consume;
mod control;
mod cut_off;
mod damaged;
mod delayer;
mod drift;
mod exam;
mod failover;
mod gem;
mod keys;
mod late_readers;
mod life;
mod limits;
mod logs;
mod messages;
mod models;
mod moments;
mod neighbours;
mod offsets;
mod plan;
mod protocol;
mod readme;
mod redrive;
mod replay;
mod resume;
mod rust_shop;
mod secondaries;
mod serve;
mod serve_faults;
mod sessions;
mod settings;
mod shop;
mod signals;
mod standstill;
mod stream;
mod stream_faults;
mod throttle;
mod told;
mod vanished;
mod verify;
mod wire;
mod worker;
mod worker_faults;

mod database;
mod database_refused;
mod database_statements;
mod database_values;
mod election;
mod election_lost;
mod ensemble;
mod examples;
mod handler;
mod isolation;
mod isolation_killed;
mod many_partitions;
mod processes;

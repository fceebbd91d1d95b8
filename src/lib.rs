//! ksync keeps search indexes, caches and other copies consistent with a SQL database, through Kafka.

pub mod announce;
pub mod cli;
pub mod consume;
pub mod database;
pub mod dead_letter;
pub mod delay;
pub mod election;
pub mod exam;
pub mod exit;
pub mod fit;
pub mod handler;
pub mod intake;
pub mod kafka;
pub mod lead;
pub mod message;
pub mod mutants;
pub mod progress;
pub mod record;
pub mod redrive;
pub mod replay;
pub mod shutdown;
pub mod stream;
pub mod sys;
pub mod topic;

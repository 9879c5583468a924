//! `nbd copy`: from one disk to another, sparse ones as sparse ones, with many requests in flight; and `nbd compare`, which
//! reads both in the same way.

mod activity;
mod arguments;
mod compare;
mod disk;
mod durable;
mod error;
mod extents;
mod feed;
mod identity;
mod made;
#[cfg(test)]
mod model;
mod moves;
mod open;
mod plan;
mod progress;
mod record;
mod run;
mod same;
mod samples;
mod sink;
mod team;
mod verify;
mod worker;
mod zeroes;

pub(crate) use arguments::Arguments;
pub(crate) use compare::{Arguments as CompareArguments, run as compare};
pub(crate) use run::run;

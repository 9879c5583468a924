//! What `nbd serve` shows of its metrics: to Prometheus by `--metrics`, and in the log after SIGUSR1.

mod address;
mod exposition;
mod http;
mod monitor;
mod summary;

pub(crate) use address::MetricsAddress;
pub(super) use http::check;
pub(super) use monitor::Monitor;

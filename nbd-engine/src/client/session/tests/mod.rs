//! Sessions step by step: clients against a server in memory, with a clock that the tests set.

mod closing;
mod deadlines;
mod disconnects;
mod outages;
mod replies;
mod shutdown;
mod silence;
mod turns;

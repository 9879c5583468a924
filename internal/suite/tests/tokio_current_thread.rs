//! The suite on tokio with one thread.

nbd_suite::suite!(nbd_suite::adapters::TokioCurrentThread);

//! The suite on tokio with several threads.

nbd_suite::suite!(nbd_suite::adapters::TokioMultiThread);

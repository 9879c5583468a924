//! The client on tokio with one thread, with every adapter's server.

nbd_suite::client_suites!(nbd_suite::clients::TokioClientCurrentThread);

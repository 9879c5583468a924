//! The client on tokio with several threads, with every adapter's server.

nbd_suite::client_suites!(nbd_suite::clients::TokioClientMultiThread);

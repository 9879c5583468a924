//! The client on async-std, with every adapter's server.

nbd_suite::client_suites!(nbd_suite::clients::AsyncStdClient);

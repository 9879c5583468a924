//! The client on tokio with several threads, with the reference server and one more.

nbd_suite::client_suites!(
    nbd_suite::clients::TokioClientMultiThread,
    blocking_server Blocking,
    tokio_server TokioMultiThread
);

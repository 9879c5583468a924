//! The client on tokio with one thread, with the reference server and one more.

nbd_suite::client_suites!(
    nbd_suite::clients::TokioClientCurrentThread,
    blocking_server Blocking,
    tokio_server TokioCurrentThread
);

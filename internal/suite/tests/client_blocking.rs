//! The client on threads, with the reference server and one more.

nbd_suite::client_suites!(
    nbd_suite::clients::BlockingClient,
    blocking_server Blocking,
    tokio_server TokioMultiThread
);

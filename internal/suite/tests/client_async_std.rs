//! The client on async-std, with the reference server and one more.

nbd_suite::client_suites!(
    nbd_suite::clients::AsyncStdClient,
    blocking_server Blocking,
    async_std_server AsyncStd
);

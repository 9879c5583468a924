//! The client on smol, with the reference server and one more.

nbd_suite::client_suites!(
    nbd_suite::clients::SmolClient,
    blocking_server Blocking,
    smol_server Smol
);

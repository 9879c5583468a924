//! The client of the guide's adapter, with the reference server and one more.

nbd_suite::client_suites!(
    nbd_suite::clients::MioClient,
    blocking_server Blocking,
    mio_server Mio
);

//! The client on smol, with every adapter's server.

nbd_suite::client_suites!(nbd_suite::clients::SmolClient);

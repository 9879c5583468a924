//! The client of the guide's adapter, with every adapter's server.

nbd_suite::client_suites!(nbd_suite::clients::MioClient);

//! The suite on smol.

nbd_suite::suite!(nbd_suite::adapters::Smol);

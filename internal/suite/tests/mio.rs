//! The suite on the adapter of the guide.

nbd_suite::suite!(nbd_suite::adapters::Mio);

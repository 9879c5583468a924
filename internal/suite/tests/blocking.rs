//! The suite on threads.

nbd_suite::suite!(nbd_suite::adapters::Blocking);

//! The suite on async-std.

nbd_suite::suite!(nbd_suite::adapters::AsyncStd);

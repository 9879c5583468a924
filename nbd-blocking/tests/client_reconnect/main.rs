//! Clients that replace their lost connections, and servers that are cut off, restarted, and lose their cache.

mod chaos;
mod fates;
mod fragile;
mod model;
mod serial;
mod table;

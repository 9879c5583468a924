//! What must hold for any bytes whatever. Each oracle panics when it does not.

mod client;
mod options;
mod pair;
mod reparse;
mod server;
mod tls_upgrade;
mod uri;
mod whim;
mod wire;

pub use client::client;
pub use options::options;
pub use pair::pair;
pub use server::server;
pub use tls_upgrade::tls_upgrade;
pub use uri::uri;
pub use wire::wire;

/// A function that panics when something does not hold for these bytes.
pub type Oracle = fn(&[u8]);

/// All oracles by name.
pub const ALL: [(&str, Oracle); 7] = [
    ("wire", wire),
    ("options", options),
    ("server", server),
    ("client", client),
    ("uri", uri),
    ("pair", pair),
    ("tls_upgrade", tls_upgrade),
];

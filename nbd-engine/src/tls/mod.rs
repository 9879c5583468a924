//! TLS for both sides of a connection.

mod records;
mod rustls_records;
mod stream;
#[cfg(test)]
mod tests;

//! What `nbd` says when it does not do what it was asked, with its exit status: what a command line or a configuration
//! is refused for, and what fails as it runs. The texts that were agreed on stand in `usage.txt` and `failures.txt`.

#[cfg(feature = "tls")]
mod broken_servers;
mod failures;
mod sources;
#[cfg(feature = "tls")]
mod transcript;
mod usage;

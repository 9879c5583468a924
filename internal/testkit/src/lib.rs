//! Test support for the workspace: a scripted NBD client and a scripted server, a guard around the server under
//! test, and the other implementations that it is tested against.
//!
//! Nothing here uses the project's own protocol code. The client in [`raw`] is a second, independent reading
//! of the protocol text: a test made with the code that it tests would share its misreadings. The server in
//! [`scripted`] is made of the same parts.
//!
//! Everything panics on failure, with a message that names the broken rule, and nothing waits without a
//! bound: a silent peer fails a test within a minute instead of hanging it.

pub mod cgroup;
pub mod exposition;
pub mod objects;
pub mod peers;
pub mod process;
pub mod raw;
pub mod scripted;
pub mod server;
pub mod snapshot;

mod endpoint;
mod loop_device;
mod own_ip;
mod pattern;
mod random;
mod small_file_system;

pub use endpoint::Endpoint;
pub use loop_device::LoopDevice;
pub use own_ip::own_ip;
pub use pattern::{Pattern, assert_same_bytes, assert_zero};
pub use random::{Random, cases};
pub use small_file_system::SmallFileSystem;

/// The bound on everything that is sure to happen, however busy the machine is. Reaching it is a failure.
pub const SOON: core::time::Duration = core::time::Duration::from_secs(60);

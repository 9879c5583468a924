//! Asking before something is gone.

use nbd_volume::Info;

use crate::ask::ask;
use crate::exit::Failure;

/// Asks on the terminal whether a volume, or a snapshot of it, is to be deleted.
pub(super) fn confirm(about: &Info, snapshot: Option<&str>) -> Result<(), Failure> {
    let what = match snapshot {
        Some(name) => format!("the snapshot '{}' of {}", name.escape_debug(), about.url),
        None => {
            let snapshots = match about.snapshots.len() {
                0 => "no snapshots".to_owned(),
                1 => "1 snapshot".to_owned(),
                count => format!("{count} snapshots"),
            };
            let size = match about.size {
                Some(size) => format!("{size} bytes"),
                None => format!("encrypted, {} bytes in the store,", about.stored),
            };
            format!("{}, {size} with {snapshots}", about.url)
        }
    };
    ask("Delete", &what)
}

/// Asks whether a volume is to lose its end.
pub(super) fn confirm_shrinking(about: &Info, from: u64, to: u64) -> Result<(), Failure> {
    let what = format!("{} from {from} to {to} bytes", about.url);
    ask("Shrink", &what)
}

//! Asking before something is gone.

use std::io::{self, IsTerminal, Write};

use nbd_volume::Info;

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
            format!("{}, {} bytes with {snapshots}", about.url, about.size)
        }
    };
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("to delete {what} without being asked, give --yes")));
    }
    let mut terminal = io::stderr();
    let asked = write!(terminal, "Delete {what}? Type yes: ").and_then(|()| terminal.flush());
    let mut answer = String::new();
    let answered = asked.and_then(|()| io::stdin().read_line(&mut answer));
    match answered {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        Ok(_) => Err(Failure::failed("nothing was deleted")),
        Err(error) => Err(Failure::failed(format!("nothing was deleted: cannot ask: {error}"))),
    }
}

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

fn ask(verb: &str, what: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        let verb = verb.to_lowercase();
        return Err(Failure::usage(format!("to {verb} {what} without being asked, give --yes")));
    }
    let mut terminal = io::stderr();
    let asked = write!(terminal, "{verb} {what}? Type yes: ").and_then(|()| terminal.flush());
    let mut answer = String::new();
    let answered = asked.and_then(|()| io::stdin().read_line(&mut answer));
    match answered {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        Ok(_) => Err(Failure::failed("nothing was changed")),
        Err(error) => Err(Failure::failed(format!("nothing was changed: cannot ask: {error}"))),
    }
}

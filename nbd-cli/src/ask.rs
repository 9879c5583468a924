//! Asking before something is gone.

use std::io::{self, IsTerminal, Write};

use crate::exit::Failure;

/// Asks on the terminal whether to do something, in two words such as `Delete` and what.
///
/// # Errors
/// A usage error without a terminal, and a failure unless the answer is yes: nothing is to be changed.
pub(crate) fn ask(verb: &str, what: &str) -> Result<(), Failure> {
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

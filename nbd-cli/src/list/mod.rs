//! `nbd list`: the exports of a server.

use std::collections::HashSet;
use std::io::Write;

use clap::Args;
use nbd_blocking::client::{Error, Haggling, Handshake, Listing, Options};

use crate::exit::Failure;
use crate::info::{Described, Report, greeting, look, write_json, write_text};
use crate::output;
use crate::target::{self, Target};

/// List the exports of a server.
///
/// Tells of each what nbd info does. The export that the URI names makes no difference.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Write JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: target::Arguments,
}

/// `nbd list`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let target = arguments.target.open()?;
    let (mut report, mut haggling) = greeting(&target)?;
    let listings = listings(&target, &report, &mut haggling)?;
    let mut result = Ok(());
    for listing in listings {
        let name = output::printable(&listing.name);
        match described(&target, &mut haggling, listing) {
            Ok(export) => report.exports.push(export),
            Err(error @ Error::Refused { .. }) => {
                let _printed = writeln!(std::io::stderr(), "nbd: {error}");
                result = Err(Failure::failed(
                    "the server does not tell of all the exports that it lists",
                ));
            }
            Err(error) => {
                let Failure::Failed(text) = target.explain(&error) else { continue };
                result = Err(Failure::failed(format!("the list ends before \"{name}\": {text}")));
                break;
            }
        }
    }
    let _left = haggling.abort();
    output::write(|out| match arguments.json {
        true => Ok(write_json(&report, out)?),
        false => Ok(write_text(&report, out)?),
    })?;
    result
}

/// The exports that the server lists, each once.
fn listings(
    target: &Target,
    report: &Report,
    haggling: &mut Haggling,
) -> Result<Vec<Listing>, Failure> {
    if report.handshake == Handshake::Oldstyle {
        // There is one, and it has no name.
        return Ok(vec![Listing { name: String::new(), description: String::new() }]);
    }
    let mut listings = haggling.list().map_err(|error| {
        let why = match &error {
            Error::Invalid(_) => "its handshake has no list".to_owned(),
            Error::Refused { refusal, text, .. } if text.is_empty() => refusal.to_string(),
            Error::Refused { text, .. } => output::printable(text),
            _ => return target.explain(&error),
        };
        let server = target.name();
        Failure::failed(format!(
            "{server} does not list its exports: {why}; name one in the URI, and see nbd info"
        ))
    })?;
    let mut seen = HashSet::new();
    listings.retain(|listing| seen.insert(listing.name.clone()));
    Ok(listings)
}

/// Looks at an export. Servers that lose patience with a client that asks so much get a new one.
fn described(
    target: &Target,
    haggling: &mut Haggling,
    listing: Listing,
) -> Result<Described, Error> {
    let Listing { name, description } = listing;
    let mut described = match look(target, haggling, &name) {
        Err(Error::Protocol { .. } | Error::Connect { .. } | Error::Disconnected { .. }) => {
            *haggling = Haggling::connect(target.uri(), &Options::default())?;
            look(target, haggling, &name)
        }
        looked => looked,
    }?;
    if described.details.description.is_none() && !description.is_empty() {
        described.details.description = Some(description);
    }
    Ok(described)
}

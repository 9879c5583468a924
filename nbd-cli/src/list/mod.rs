//! `nbd list`: the exports of a server.

use std::collections::HashSet;

use clap::Args;
use nbd_blocking::Negotiation;
use nbd_blocking::client::{Error, Handshake, Listing};

use crate::colour::{self, Paint};
use crate::exit::Failure;
use crate::info::{self, Described, Report, greeting, look, write_json, write_text};
use crate::target::{self, Target};
use crate::{output, stderr};

/// List the exports of a server.
///
/// Shows of each what nbd info does. The export that the URI names makes no difference.
#[derive(Debug, Args)]
#[command(override_usage = "nbd list [OPTIONS] <URI | [ COMMAND ARGS ]>")]
pub(crate) struct Arguments {
    /// Write JSON
    #[arg(long)]
    json: bool,

    /// Read the first bytes of each export: to name partition tables, file systems and other formats that are known, and to
    /// have file(1) guess what it contains from its first 8 KiB
    #[arg(long)]
    content: bool,

    #[command(flatten)]
    colour: colour::Arguments,

    #[command(flatten)]
    target: target::Arguments,
}

/// The names of metadata contexts that a list holds at the most, in bytes: what a server reports of one export is
/// bounded, but not how many exports it has. That is a thousand exports with a thousand contexts each.
const MAX_CONTEXT_BYTES: usize = 64 << 20;

/// How a list is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) json: bool,
    pub(crate) content: bool,
    pub(crate) paint: Paint,
}

/// `nbd list`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let &Arguments { json, content, colour, .. } = arguments;
    show(&arguments.target.open()?, Format { json, content, paint: colour.paint() })
}

/// Lists the exports of a server.
pub(crate) fn show(target: &Target, format: Format) -> Result<(), Failure> {
    let (mut report, mut negotiation) = greeting(target)?;
    let listings = listings(target, &report, &mut negotiation)?;
    let (mut result, mut room) = (Ok(()), MAX_CONTEXT_BYTES);
    for listing in listings {
        let name = output::printable(&listing.name);
        match described(target, &mut negotiation, listing) {
            Ok(export) => {
                let held = |name: &String| name.len() + size_of::<String>();
                let needed = export.contexts.iter().map(held).sum();
                let Some(left) = room.checked_sub(needed) else {
                    result = Err(Failure::failed(format!(
                        "the list ends before \"{name}\": the server reports more than 64 MiB of metadata contexts; \
                         ask for one export with nbd info {}",
                        target.word(export.details.name())
                    )));
                    break;
                };
                room = left;
                report.exports.push(export);
            }
            Err(error @ Error::Refused { .. }) => {
                stderr::say_error(&error.to_string(), &[]);
                result = Err(Failure::failed(format!(
                    "{} lists exports on which it gives no information, reported above",
                    target.name()
                )));
            }
            Err(error) => {
                let Failure::Failed(text) = target.explain(&error) else { continue };
                result = Err(Failure::failed(format!("the list ends before \"{name}\": {text}")));
                break;
            }
        }
    }
    if format.content {
        result = result.and(guess_contents(target, negotiation, &mut report));
    } else {
        let _left = negotiation.abort();
    }
    output::write(|out| match format.json {
        true => Ok(write_json(&report, out)?),
        false => Ok(write_text(&report, format.paint, out)?),
    })?;
    result
}

/// Enters one export after the other: the first by the connection that there is, since some servers take no other.
/// Gives the last failure, and leaves that content out.
fn guess_contents(
    target: &Target,
    negotiation: Negotiation,
    report: &mut Report,
) -> Result<(), Failure> {
    let (mut first, mut result) = (Some(negotiation), Ok(()));
    for export in &mut report.exports {
        let negotiation = first.take().map_or_else(|| target.negotiate(), Ok);
        let guess = negotiation.and_then(|mut negotiation| {
            let client = negotiation.enter(export.details.name());
            let client = client.map_err(|error| target.explain(&error))?;
            let content = info::content(target, &client);
            export.contents = info::contents(&client).unwrap_or_default();
            client.disconnect();
            content
        });
        match guess {
            Ok(content) => export.content = Some(content),
            Err(failure) => result = Err(failure),
        }
    }
    result
}

/// An export in the list.
struct Listed {
    name: String,
    description: String,
}

/// The exports that the server lists, each once.
fn listings(
    target: &Target,
    report: &Report,
    negotiation: &mut Negotiation,
) -> Result<Vec<Listed>, Failure> {
    if report.handshake == Handshake::Oldstyle {
        // There is one, and it has no name.
        return Ok(vec![Listed { name: String::new(), description: String::new() }]);
    }
    let listings = negotiation.list().map_err(|error| {
        let why = match &error {
            Error::InvalidOption(_) => "its handshake has no list".to_owned(),
            Error::Refused { refusal, text, .. } if text.is_empty() => refusal.to_string(),
            Error::Refused { text, .. } => output::printable(text),
            _ => return target.explain(&error),
        };
        let server = target.name();
        let remedy = match target.uri().export() {
            "" => "name one in the URI, and see nbd info",
            _ => "nbd info shows the one that the URI names",
        };
        Failure::failed(format!("{server} does not list its exports: {why}; {remedy}"))
    })?;
    let mut seen = HashSet::new();
    let listed = listings.into_iter().filter(|listing| seen.insert(listing.name.clone()));
    Ok(listed.map(|Listing { name, description, .. }| Listed { name, description }).collect())
}

/// Looks at an export. Servers that lose patience with a client that asks so much get a new one.
fn described(
    target: &Target,
    negotiation: &mut Negotiation,
    listing: Listed,
) -> Result<Described, Error> {
    let Listed { name, description } = listing;
    let mut described = match look(target, negotiation, &name) {
        Err(Error::Protocol { .. } | Error::Connect { .. } | Error::Disconnected { .. }) => {
            *negotiation = target.negotiate_again()?;
            look(target, negotiation, &name)
        }
        looked => looked,
    }?;
    if described.description.is_none() && !description.is_empty() {
        described.description = Some(description);
    }
    Ok(described)
}

//! Asking a server about its exports.

use nbd_blocking::Negotiation;
use nbd_blocking::client::{Error, ExportDetails, NoSession, OptionReplyType};

use super::report::{Described, Report};
use crate::exit::Failure;
use crate::target::Target;

/// Connects to a server; gives what it says of itself, without exports yet.
pub(crate) fn greeting(target: &Target) -> Result<(Report, Negotiation), Failure> {
    let negotiation = target.negotiate()?;
    let report = Report {
        handshake: negotiation.handshake(),
        tls: negotiation.is_tls(),
        structured: negotiation.is_structured(),
        extended: negotiation.is_extended(),
        exports: Vec::new(),
    };
    Ok((report, negotiation))
}

/// Looks at an export.
pub(crate) fn look(
    target: &Target,
    negotiation: &mut Negotiation,
    export: &str,
) -> Result<Described, Error> {
    let details = details(target, negotiation, export)?;
    let contexts = match negotiation.list_meta_contexts(export, &[]) {
        Ok(contexts) => contexts,
        Err(Error::Refused { .. } | Error::InvalidOption(_) | Error::Unsupported { .. }) => {
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let uri = match target.is_command() {
        true => None,
        // As nbdinfo writes it.
        false => target.uri().clone().with_export(export).map(|uri| format!("{uri:#}")).ok(),
    };
    let description = details.description().map(Into::into);
    let size = details.size();
    Ok(Described { details, description, size, uri, contexts, content: None, contents: None })
}

/// What the server says of an export; if it describes it only on entering, by entering over a connection of its own.
fn details(
    target: &Target,
    negotiation: &mut Negotiation,
    export: &str,
) -> Result<ExportDetails, Error> {
    match negotiation.info(export) {
        Ok(details) => Ok(details),
        Err(error) if describes_on_entering(&error) => {
            let client = target.enter_anew(export)?;
            let details = client.export().clone();
            client.disconnect();
            Ok(details)
        }
        Err(error) => Err(error),
    }
}

fn describes_on_entering(error: &Error) -> bool {
    match error {
        Error::InvalidOption(_) => true,
        Error::Refused { refusal: NoSession::Option { reply, .. }, .. } => {
            *reply == OptionReplyType::ERR_UNSUP
        }
        _ => false,
    }
}

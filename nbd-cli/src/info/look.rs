//! Asking a server about its exports.

use nbd_blocking::Client;
use nbd_blocking::client::{Error, ExportDetails, Haggling};
use nbd_engine::proto::Refusal;
use nbd_engine::proto::wire::OptionReplyType;

use super::report::{Described, Report};
use crate::exit::Failure;
use crate::target::Target;

/// Reaches a server; gives what it tells of itself, without exports yet.
pub(crate) fn greeting(target: &Target) -> Result<(Report, Haggling), Failure> {
    let haggling = target.haggle()?;
    let report = Report {
        handshake: haggling.handshake(),
        tls: haggling.is_tls(),
        structured: haggling.is_structured(),
        extended: haggling.is_extended(),
        exports: Vec::new(),
    };
    Ok((report, haggling))
}

/// Looks at an export.
pub(crate) fn look(
    target: &Target,
    haggling: &mut Haggling,
    export: &str,
) -> Result<Described, Error> {
    let details = details(target, haggling, export)?;
    let contexts = match haggling.list_meta_contexts(export, &[] as &[&str]) {
        Ok(contexts) => contexts,
        Err(Error::Refused { .. } | Error::Invalid(_) | Error::Unsupported { .. }) => Vec::new(),
        Err(error) => return Err(error),
    };
    let uri = match target.is_command() {
        true => None,
        // As nbdinfo writes it.
        false => target.uri().clone().with_export(export).map(|uri| format!("{uri:#}")).ok(),
    };
    Ok(Described { details, uri, contexts, content: None })
}

/// What the server tells of an export; if it only tells those who enter, by entering over a connection of its own.
fn details(target: &Target, haggling: &mut Haggling, export: &str) -> Result<ExportDetails, Error> {
    match haggling.info(export) {
        Ok(details) => Ok(details),
        Err(error) if tells_only_inside(&error) => {
            let mut options = target.options();
            options.export = Some(export.to_owned());
            let client = Client::connect_with(target.uri(), &options)?;
            let details = client.details().clone();
            client.disconnect();
            Ok(details)
        }
        Err(error) => Err(error),
    }
}

fn tells_only_inside(error: &Error) -> bool {
    match error {
        Error::Invalid(_) => true,
        Error::Refused { refusal: Refusal::Option { reply, .. }, .. } => {
            *reply == OptionReplyType::ERR_UNSUP
        }
        _ => false,
    }
}

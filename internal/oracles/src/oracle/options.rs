//! Haggling, option by option.

use nbd_proto::wire::{OptionCode, OptionHeader};

use super::reparse;
use super::server::{Setup, run};
use crate::choices::Choices;

/// As the server's oracle. Besides, each option is answered by one final reply, in order, with its own number.
pub fn options(data: &[u8]) {
    let mut choices = Choices::new(data);
    let setup = Setup::take(&mut choices);
    let stream = choices.rest();
    let session = run(&setup, stream);
    let end = session.entered.unwrap_or(session.output.len());
    let answered = reparse::option_phase(&session.output[..end], session.entered.is_some());
    if answered.is_empty() && session.entered.is_some() {
        // Oldstyle has no options.
        return;
    }
    let sent = sent(stream);
    assert!(sent.starts_with(&answered), "{answered:?} were answered of {sent:?}");
    // What was refused by hanging up, or came after the handshake, has no answer.
    if session.error().is_none() && session.entered.is_none() {
        assert_eq!(answered, sent);
    }
}

/// The options that a client sent wholly, up to its ABORT.
fn sent(stream: &[u8]) -> Vec<OptionCode> {
    let mut codes = Vec::new();
    let mut rest = stream.get(4..).unwrap_or_default();
    while let Some((header, after)) = rest.split_first_chunk() {
        let Ok(OptionHeader { code, length }) = OptionHeader::decode(header) else { break };
        let Some(after) = after.get(length as usize..) else { break };
        rest = after;
        codes.push(code);
        if code == OptionCode::ABORT {
            break;
        }
    }
    codes
}

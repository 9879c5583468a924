//! Option replies on their way to the queue (section "Option reply types").

use alloc::vec::Vec;

use crate::outbound::{Outbound, Tail};
use crate::wire::{
    DecodeError, MAX_STRING, MetaContextReply, OptionCode, OptionReplyHeader, OptionReplyType,
    ServerReply,
};

impl Outbound {
    /// Queues a reply whose data is `parts`, one behind the other.
    pub(super) fn option_reply(
        &mut self,
        code: OptionCode,
        reply: OptionReplyType,
        parts: &[&[u8]],
    ) {
        self.option_reply_with(code, reply, |out| {
            parts.iter().for_each(|part| out.extend_from_slice(part))
        });
    }

    fn option_reply_with(
        &mut self,
        code: OptionCode,
        reply: OptionReplyType,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let header_at = self.position();
        self.put(&OptionReplyHeader { code, reply, length: 0 }.encode());
        let data_at = self.position();
        self.put_with(write);
        let length = self.length_since(data_at);
        self.patch(header_at, OptionReplyHeader { code, reply, length }.encode());
        self.seal(Tail::None, None);
    }

    pub(super) fn option_ack(&mut self, code: OptionCode) {
        self.option_reply(code, OptionReplyType::ACK, &[]);
    }

    /// Queues an error reply with a text for people.
    pub(super) fn option_error(&mut self, code: OptionCode, reply: OptionReplyType, text: &str) {
        self.option_reply(code, reply, &[displayable(text).as_bytes()]);
        self.refuses(code, reply);
    }

    pub(super) fn option_malformed(&mut self, code: OptionCode, error: &DecodeError) {
        let text = alloc::format!("the data of {code} is malformed: {error}");
        self.option_error(code, OptionReplyType::ERR_INVALID, &text);
    }

    pub(super) fn option_server(&mut self, name: &str, description: &str) {
        self.option_reply_with(OptionCode::LIST, OptionReplyType::SERVER, |out| {
            ServerReply { name, description }.encode(out);
        });
    }

    pub(super) fn option_context(&mut self, code: OptionCode, id: u32, name: &str) {
        self.option_reply_with(code, OptionReplyType::META_CONTEXT, |out| {
            MetaContextReply { id, name }.encode(out);
        });
    }
}

/// The part of a text that obeys the rules for strings (section "Conventions"): no NUL, not too long, whole characters.
pub(super) fn displayable(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    let mut end = text.len().min(MAX_STRING);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effort::{config, up_to};
    use proptest::prelude::*;

    #[test]
    fn texts_are_cut_at_a_nul_and_at_whole_characters() {
        assert_eq!(displayable("a\0b"), "a");
        let long: alloc::string::String = core::iter::repeat_n('ü', 3000).collect();
        assert_eq!(displayable(&long).len(), 4096);
        let odd = alloc::format!("x{long}");
        assert_eq!(displayable(&odd).len(), 4095);
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn a_text_becomes_a_valid_string(
            text in prop::collection::vec(prop::sample::select(&['a', 'ü', '€', '😀'][..]), 0..up_to(3000)),
            nul in 0..up_to(6000),
        ) {
            let mut text: alloc::string::String = text.into_iter().collect();
            if text.is_char_boundary(nul) {
                text.insert(nul, '\0');
            }
            prop_assert!(crate::wire::is_valid_string(displayable(&text).as_bytes()));
        }
    }
}

//! What a scripted server pretends to have.

use super::answer::{Answer, OptionAnswer};
use crate::Pattern;
use crate::raw::{BlockSize, Cmd, Errno, Info, Mode, Opt, Rep, flag};

/// An export, and what the server is able to negotiate. Its content is [`Export::CONTENT`]; writes are thrown away.
#[derive(Clone, Debug)]
pub struct Export {
    /// The best form of replies that it agrees on.
    pub mode: Mode,
    /// Bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Size constraints, if it tells any.
    pub block_size: Option<BlockSize>,
    /// The metadata contexts that it selects, whatever it is asked for.
    pub contexts: Vec<(u32, String)>,
}

impl Export {
    /// What every export reads as.
    pub const CONTENT: Pattern = Pattern(7);

    /// A disk of 1 MiB that can do everything that the mode allows, with `base:allocation` as context 1.
    pub fn new(mode: Mode) -> Self {
        let missing = match mode {
            Mode::Simple => flag::SEND_DF | flag::BLOCK_STATUS_PAYLOAD,
            Mode::Structured => flag::BLOCK_STATUS_PAYLOAD,
            Mode::Extended => 0,
        };
        let never = flag::READ_ONLY | flag::ROTATIONAL | flag::SEND_RESIZE;
        Self {
            mode,
            size: 1 << 20,
            flags: flag::DEFINED & !(never | missing),
            block_size: None,
            contexts: vec![(1, "base:allocation".into())],
        }
    }

    /// The data of `INFO_EXPORT`.
    pub fn info_export(&self) -> Vec<u8> {
        let kind = Info::EXPORT.0.to_be_bytes();
        [&kind[..], &self.size.to_be_bytes(), &self.flags.to_be_bytes()].concat()
    }

    /// The data of `INFO_BLOCK_SIZE`.
    pub fn info_block_size(sizes: BlockSize) -> Vec<u8> {
        let BlockSize { minimum, preferred, maximum } = sizes;
        let mut data = Info::BLOCK_SIZE.0.to_be_bytes().to_vec();
        for size in [minimum, preferred, maximum] {
            data.extend_from_slice(&size.to_be_bytes());
        }
        data
    }

    /// A proper answer to an option; `EXPORT_NAME` has none of this kind.
    pub(super) fn answer_option(&self, option: Opt) -> Vec<OptionAnswer> {
        let mut answers = Vec::new();
        match option {
            Opt::EXTENDED_HEADERS if self.mode == Mode::Extended => {}
            Opt::STRUCTURED_REPLY if self.mode != Mode::Simple => {}
            Opt::LIST => answers.push(OptionAnswer::new(Rep::SERVER, &[0; 4])),
            Opt::INFO | Opt::GO => {
                answers.push(OptionAnswer::new(Rep::INFO, &self.info_export()));
                if let Some(sizes) = self.block_size {
                    answers.push(OptionAnswer::new(Rep::INFO, &Self::info_block_size(sizes)));
                }
            }
            Opt::LIST_META_CONTEXT | Opt::SET_META_CONTEXT if self.mode != Mode::Simple => {
                for (id, name) in &self.contexts {
                    let data = [&id.to_be_bytes()[..], name.as_bytes()].concat();
                    answers.push(OptionAnswer::new(Rep::META_CONTEXT, &data));
                }
            }
            Opt::ABORT => {}
            _ => return vec![OptionAnswer::new(Rep::ERR_UNSUP, &[])],
        }
        answers.push(OptionAnswer::ack());
        answers
    }

    /// A proper answer to a request.
    pub(super) fn answer(&self, command: Cmd, offset: u64, length: u64) -> Vec<Answer> {
        match (command, self.mode) {
            (Cmd::READ, mode) => {
                let data = Self::CONTENT.bytes(offset, length as usize);
                vec![match mode {
                    Mode::Simple => Answer::simple(Errno(0), &data),
                    _ => Answer::data(offset, &data).done(),
                }]
            }
            (Cmd::BLOCK_STATUS, mode) => {
                let tell = |(id, _): &(u32, String)| match mode {
                    Mode::Extended => Answer::status_ext(*id, &[(length, 0)]),
                    _ => Answer::status(*id, &[(length as u32, 0)]),
                };
                let last = Answer::none().done();
                self.contexts.iter().map(tell).chain([last]).collect()
            }
            (_, Mode::Extended) => vec![Answer::none().done()],
            _ => vec![Answer::simple(Errno(0), &[])],
        }
    }
}

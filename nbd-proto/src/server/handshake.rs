//! The handshake: client flags, and options one by one (section "Handshake").

use alloc::string::String;
use alloc::vec::Vec;

use super::question::Question;
use super::{Config, Event};
use crate::limits::OPTIONS_PER_EXPORT;
use crate::outbound::Outbound;
use crate::scratch::Scratch;
use crate::wire::{ClientFlags, OptionHeader};
use crate::{
    Error, Input, LimitExceeded, OrderlyEnd, PauseReason, PeerMisbehaved, SelectedContext, Wants,
};

/// Everything up to the start of transmission.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    pub(super) state: State,
    /// Data of the option at hand.
    data: Vec<u8>,
    /// Options so far.
    options: u32,
    /// The longest list of exports so far.
    pub(super) listed: u32,
    pub(super) agreed: Agreed,
}

/// What the next bytes of the stream are, or what they wait for.
#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    ClientFlags,
    Header,
    Data(OptionHeader),
    /// Data that is too long to be looked at, and how much of it is still to come.
    Skip(OptionHeader, u64),
    /// The embedder is to answer.
    Asked(Question),
    /// STARTTLS was acknowledged.
    Tls,
}

/// What was agreed so far. STARTTLS voids all but the client flags.
// S-TLS-06
#[derive(Debug, Default)]
pub(super) struct Agreed {
    pub(super) client_flags: ClientFlags,
    pub(super) tls: bool,
    pub(super) structured: bool,
    pub(super) extended: bool,
    pub(super) selection: Selection,
}

/// The metadata contexts that a client selected.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// The export that they are for, as named by the client.
    pub(super) export: String,
    pub(super) contexts: Vec<SelectedContext>,
    /// What each of them is like.
    pub(super) kinds: Vec<ContextKind>,
}

/// What the core has to know of a metadata context.
#[derive(Clone, Copy, Debug)]
pub(super) struct ContextKind {
    /// The status has 64 bits.
    pub(super) wide: bool,
    /// A block has only what all of its parts have, instead of what any part has.
    pub(super) all: bool,
}

/// What the parts of the machine share.
pub(super) struct Shared<'a> {
    pub(super) config: &'a Config,
    pub(super) out: &'a mut Outbound,
    pub(super) shutdown: Shutdown,
}

/// Whether the server is shutting down, and what becomes of requests then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shutdown {
    No,
    /// They are refused.
    Refusing,
    /// None is read any more.
    HangingUp,
}

/// What came of looking at the input.
pub(super) enum Step {
    Event(Event),
    /// Look again.
    Again,
    /// More input is needed, and all that was there has been consumed.
    Starved,
    /// Something other than input is needed.
    Paused,
    /// The client ends the session.
    Closing(OrderlyEnd),
}

/// What was sent in place of client flags: by clients of another protocol, whose first bytes are known, or of this one.
fn not_flags(bits: u32) -> PeerMisbehaved {
    match bits.to_be_bytes() {
        // A record of a handshake, of any version of TLS.
        [0x16, 0x03, 0..=4, _] => PeerMisbehaved::TlsAtOnce,
        first if HTTP_METHODS.contains(&&first) => PeerMisbehaved::Http,
        _ => PeerMisbehaved::UnknownClientFlags(bits),
    }
}

/// The methods that requests by HTTP begin with, as far as client flags reach, and the preface of version 2.
const HTTP_METHODS: [&[u8; 4]; 9] =
    [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"CONN", b"OPTI", b"PATC", b"PRI "];

/// Option replies that may wait to be sent before no further option is read.
const MAX_UNSENT: usize = 256 << 10;

impl Handshake {
    pub(super) fn step(
        &mut self,
        shared: &mut Shared<'_>,
        scratch: &mut Scratch,
        input: &mut impl Input,
    ) -> Result<Step, Error> {
        match &mut self.state {
            State::ClientFlags => {
                let Some(bytes) = scratch.take(input) else { return Ok(Step::Starved) };
                self.client_flags(shared, u32::from_be_bytes(bytes))?;
            }
            State::Header => {
                if shared.out.control_len() > MAX_UNSENT {
                    return Ok(Step::Paused);
                }
                let Some(bytes) = scratch.take(input) else { return Ok(Step::Starved) };
                self.option_header(shared, OptionHeader::decode(&bytes)?)?;
            }
            State::Data(header) => {
                let header = *header;
                if !collect(&mut self.data, header.length as usize, input) {
                    return Ok(Step::Starved);
                }
                self.state = State::Header;
                let mut data = core::mem::take(&mut self.data);
                let step = self.option(shared, header.code, &mut data)?;
                self.data = data;
                if matches!(self.state, State::Tls) && !input.unread().is_empty() {
                    return Err(PeerMisbehaved::PlaintextAfterStartTls.into());
                }
                return Ok(step);
            }
            State::Skip(header, remaining) => {
                *remaining = skip(*remaining, input);
                if *remaining > 0 {
                    return Ok(Step::Starved);
                }
                let code = header.code;
                self.state = State::Header;
                return self.option_too_big(shared, code);
            }
            // No TLS client begins before it has the acknowledgement.
            State::Tls if !shared.out.is_empty() && !input.unread().is_empty() => {
                return Err(PeerMisbehaved::PlaintextAfterStartTls.into());
            }
            // The TLS handshake has its own input.
            State::Tls => return Ok(Step::Starved),
            State::Asked(_) => return Ok(Step::Paused),
        }
        Ok(Step::Again)
    }

    /// All that was agreed before TLS is forgotten.
    pub(super) fn tls_established(&mut self) {
        let client_flags = self.agreed.client_flags;
        self.agreed = Agreed { client_flags, tls: true, ..Agreed::default() };
        self.state = State::Header;
    }

    fn client_flags(&mut self, shared: &Shared<'_>, bits: u32) -> Result<(), Error> {
        let mut offered = ClientFlags::FIXED_NEWSTYLE;
        offered.set(ClientFlags::NO_ZEROES, shared.config.no_zeroes);
        let flags = ClientFlags::from_bits_retain(bits);
        if !offered.contains(flags) {
            return Err(not_flags(bits).into());
        }
        self.agreed.client_flags = flags;
        self.state = State::Header;
        Ok(())
    }

    /// Decides whether an option's data will be looked at, skipped, or ends the connection.
    fn option_header(&mut self, shared: &Shared<'_>, header: OptionHeader) -> Result<(), Error> {
        let limits = &shared.config.limits;
        // A client that asks about each listed export is an honest one, however many there are.
        let more = self.listed.saturating_mul(OPTIONS_PER_EXPORT);
        let limit = limits.max_options.saturating_add(more);
        if self.options >= limit {
            return Err(LimitExceeded::Options(limit).into());
        }
        self.options = self.options.saturating_add(1);
        let OptionHeader { code, length } = header;
        if length > limits.max_option_data.max(limits.max_option_skip) {
            return Err(LimitExceeded::OptionData { code, length }.into());
        }
        self.data.clear();
        self.state = if length > limits.max_option_data {
            State::Skip(header, length.into())
        } else {
            State::Data(header)
        };
        Ok(())
    }

    /// What is wanted when [`step`](Self::step) came to nothing.
    pub(super) fn wants(&self, out: &Outbound, scratch: &Scratch) -> Wants {
        match &self.state {
            State::ClientFlags => scratch.wants(4),
            State::Header if out.control_len() > MAX_UNSENT => Wants::Nothing(PauseReason::Unsent),
            State::Header => scratch.wants(OptionHeader::SIZE),
            State::Data(header) => Wants::missing(header.length as usize, self.data.len()),
            State::Skip(_, remaining) => Wants::dropping(*remaining),
            State::Asked(_) => Wants::Nothing(PauseReason::AwaitingAnswer),
            State::Tls if !out.is_empty() => Wants::Nothing(PauseReason::Unsent),
            State::Tls => Wants::Tls,
        }
    }

    /// What an end of the stream would cut off here.
    pub(super) const fn cut_off(&self) -> Option<&'static str> {
        match self.state {
            State::Data(_) | State::Skip(..) => Some("an option"),
            State::Tls => Some("the TLS handshake"),
            State::ClientFlags | State::Header | State::Asked(_) => None,
        }
    }
}

impl Selection {
    /// Whether metadata contexts were selected for this very name.
    // S-OPT-SM-08
    pub(super) fn is_for(&self, export: &str) -> bool {
        !self.contexts.is_empty() && self.export == export
    }
}

/// Moves bytes into `data` until it holds `length`, which was compared with a bound before. Says whether it does.
pub(super) fn collect(data: &mut Vec<u8>, length: usize, input: &mut impl Input) -> bool {
    let unread = input.unread();
    let count = length.saturating_sub(data.len()).min(unread.len());
    data.extend_from_slice(unread.get(..count).unwrap_or_default());
    input.consume(count);
    data.len() >= length
}

/// Drops bytes, at most `remaining`. Gives how many are still to come.
pub(super) fn skip(remaining: u64, input: &mut impl Input) -> u64 {
    let unread = input.unread().len();
    let rest = remaining.saturating_sub(unread as u64);
    // What is dropped now is no more than is there.
    input.consume(usize::try_from(remaining.saturating_sub(rest)).unwrap_or(unread));
    rest
}

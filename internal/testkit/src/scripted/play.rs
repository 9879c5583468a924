//! A script on its way.

use core::time::Duration;
use std::io::ErrorKind;
use std::time::Instant;

use super::answer::About;
use super::script::{Script, Step};
use super::server::{Report, Shared};
use crate::raw::{Cmd, Mode, Opt, Wire, cmd_flag, handshake, magic};

/// How long a script waits for its client, and how long it goes on with what has no end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much a script sends of what has no end, before it finds that its client takes no end of it.
const TOO_MUCH: u64 = 1 << 30;

/// No option and no payload of a test is longer.
const MAX_DATA: u64 = 64 << 20;

/// The connection is over, though the script is not.
struct Over;

type Played<T = ()> = Result<T, Over>;

struct Request {
    command: Cmd,
    flags: u16,
    length: u64,
}

pub(super) struct Player<'a> {
    script: &'a Script,
    shared: &'a Shared,
    wire: Wire,
    sent: u64,
    received: u64,
    no_zeroes: bool,
    option: Option<Opt>,
    last: Option<Request>,
    abouts: Vec<About>,
}

/// Plays a script to its end, or until the client has gone.
pub(super) fn play(script: &Script, shared: &Shared, mut wire: Wire) -> Report {
    wire.set_timeout(PATIENCE);
    let mut player = Player {
        script,
        shared,
        wire,
        sent: 0,
        received: 0,
        no_zeroes: false,
        option: None,
        last: None,
        abouts: Vec::new(),
    };
    let mut steps = 0;
    let mut over = false;
    for step in &script.steps {
        if player.play(step).is_err() {
            over = true;
            break;
        }
        steps += 1;
    }
    let Player { sent, received, .. } = player;
    Report { sent, received, steps, left: over && !player.is_cut() }
}

impl Player<'_> {
    fn play(&mut self, step: &Step) -> Played {
        match step {
            Step::ClientFlags => {
                let flags = self.take(4)?;
                self.no_zeroes = u32::from_be_bytes(as_array(&flags)) & handshake::NO_ZEROES != 0;
                Ok(())
            }
            Step::Until(option) => loop {
                let next = self.receive_option()?;
                if next == *option {
                    return Ok(());
                }
                let entered = self.answer_option_properly(next)?;
                assert!(!entered, "the client entered the export by {next:?} without {option:?}");
            },
            Step::Enter => loop {
                let next = self.receive_option()?;
                if self.answer_option_properly(next)? {
                    return Ok(());
                }
            },
            Step::Header(command) => {
                self.receive_header()?;
                let found = self.last.as_ref().map(|request| request.command);
                if found == Some(Cmd::DISC) && *command != Cmd::DISC {
                    return Err(Over);
                }
                assert_eq!(found, Some(*command), "the client's request");
                Ok(())
            }
            Step::Payload => self.receive_payload(),
            Step::Obey => self.obey(),
            Step::Serve => loop {
                self.receive_header()?;
                self.receive_payload()?;
                if self.last.as_ref().is_some_and(|request| request.command == Cmd::DISC) {
                    return Err(Over);
                }
                self.obey()?;
            },
            Step::Endlessly(step) => {
                let once = self.bytes(step);
                let many = once.repeat(65536_usize.div_ceil(once.len()));
                let start = Instant::now();
                loop {
                    self.send(&many)?;
                    let endless = self.sent >= TOO_MUCH || start.elapsed() > PATIENCE;
                    assert!(!endless, "the client took {} bytes and no end of it", self.sent);
                }
            }
            Step::Dripping(step, pause) => {
                let start = Instant::now();
                let once = self.bytes(step);
                for byte in once.iter().cycle() {
                    self.send(core::slice::from_ref(byte))?;
                    assert!(start.elapsed() < PATIENCE, "the client took drops and no end of them");
                    std::thread::sleep(*pause);
                }
                Ok(())
            }
            Step::Silence => {
                self.received += self.wire.discard_to_eof("the client hangs up");
                Err(Over)
            }
            Step::Hold => {
                self.shared.wait_for_release(PATIENCE);
                Ok(())
            }
            Step::Deaf => {
                self.wire.expect_hang_up(PATIENCE);
                Err(Over)
            }
            Step::Send(_) | Step::AnswerOption(_) | Step::Answer(_) => {
                let bytes = self.bytes(step);
                self.send(&bytes)
            }
        }
    }

    /// What a step sends.
    #[track_caller]
    fn bytes(&self, step: &Step) -> Vec<u8> {
        match step {
            Step::Send(bytes) => bytes.clone(),
            Step::AnswerOption(answer) => {
                answer.encode(self.option.expect("an option came before its answer"))
            }
            Step::Answer(answer) => answer.encode(self.script.export.mode, &self.abouts),
            _ => panic!("{step:?} sends nothing"),
        }
    }

    fn is_cut(&self) -> bool {
        self.script.cut_after.is_some_and(|bytes| self.sent >= bytes)
    }

    fn send(&mut self, bytes: &[u8]) -> Played {
        let left = self.script.cut_after.map(|limit| limit.saturating_sub(self.sent));
        let fits = left.is_none_or(|left| bytes.len() as u64 <= left);
        let part = if fits { bytes } else { &bytes[..left.unwrap_or(0) as usize] };
        if let Err(error) = self.wire.try_send(part) {
            let stuck = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            assert!(!stuck, "the client neither reads nor leaves");
            return Err(Over);
        }
        self.sent += part.len() as u64;
        if self.is_cut() { Err(Over) } else { Ok(()) }
    }

    fn take(&mut self, length: usize) -> Played<Vec<u8>> {
        let bytes = self.wire.recv_or_gone(length, "the client's next move").ok_or(Over)?;
        self.received += length as u64;
        Ok(bytes)
    }

    fn receive_option(&mut self) -> Played<Opt> {
        let header = self.take(16)?;
        let magic = u64::from_be_bytes(as_array(&header[..8]));
        assert_eq!(magic, magic::IHAVEOPT, "the magic of an option");
        let option = Opt(u32::from_be_bytes(as_array(&header[8..12])));
        let length = u32::from_be_bytes(as_array(&header[12..]));
        assert!(u64::from(length) <= MAX_DATA, "{option:?} with {length} bytes of data");
        self.take(length as usize)?;
        self.option = Some(option);
        Ok(option)
    }

    /// Whether that entered the export.
    fn answer_option_properly(&mut self, option: Opt) -> Played<bool> {
        let export = &self.script.export;
        if option == Opt::EXPORT_NAME {
            let mut reply = export.size.to_be_bytes().to_vec();
            reply.extend_from_slice(&export.flags.to_be_bytes());
            reply.resize(if self.no_zeroes { 10 } else { 134 }, 0);
            self.send(&reply)?;
            return Ok(true);
        }
        let answers = export.answer_option(option);
        let bytes: Vec<_> = answers.iter().flat_map(|answer| answer.encode(option)).collect();
        self.send(&bytes)?;
        match option {
            Opt::ABORT => Err(Over),
            option => Ok(option == Opt::GO),
        }
    }

    fn receive_header(&mut self) -> Played {
        let extended = self.script.export.mode == Mode::Extended;
        let (magic, size) =
            if extended { (magic::EXTENDED_REQUEST, 32) } else { (magic::REQUEST, 28) };
        let header = self.take(size)?;
        assert_eq!(u32::from_be_bytes(as_array(&header[..4])), magic, "the magic of a request");
        let flags = u16::from_be_bytes(as_array(&header[4..6]));
        let command = Cmd(u16::from_be_bytes(as_array(&header[6..8])));
        let cookie = u64::from_be_bytes(as_array(&header[8..16]));
        let offset = u64::from_be_bytes(as_array(&header[16..24]));
        let length = match extended {
            true => u64::from_be_bytes(as_array(&header[24..])),
            false => u32::from_be_bytes(as_array(&header[24..])).into(),
        };
        self.last = Some(Request { command, flags, length });
        self.abouts.push(About { cookie, offset });
        self.shared.count_request();
        Ok(())
    }

    fn receive_payload(&mut self) -> Played {
        let Some(Request { command, flags, length }) = self.last else { return Ok(()) };
        if command == Cmd::WRITE || flags & cmd_flag::PAYLOAD_LEN != 0 {
            assert!(length <= MAX_DATA, "{command:?} with {length} bytes");
            self.take(length as usize)?;
        }
        Ok(())
    }

    fn obey(&mut self) -> Played {
        let Some(&Request { command, length, .. }) = self.last.as_ref() else { return Ok(()) };
        let offset = self.abouts.last().map_or(0, |about| about.offset);
        let export = &self.script.export;
        let answers = export.answer(command, offset, length);
        let encoded = answers.iter().flat_map(|answer| answer.encode(export.mode, &self.abouts));
        let bytes: Vec<_> = encoded.collect();
        self.send(&bytes)
    }
}

#[track_caller]
fn as_array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("so many bytes were received")
}

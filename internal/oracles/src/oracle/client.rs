//! The client's machine against any server.

use std::collections::BTreeMap;

use nbd_pair::client::{Actor, Buffer, Client, ClientEnd, client_end, with_flags};
use nbd_pair::split::Split;
use nbd_proto::client::{CommandError, Config, Connection, Event, Goal, TlsMode};
use nbd_proto::wire::{CommandFlags, InfoType, OptionCode};
use nbd_proto::{Command, Limits, PeerMisbehaved};

use super::reparse;
use crate::choices::Choices;

/// The longest read and write.
const MAX: u64 = 8 << 10;

/// How a client is set up and what it wants.
#[derive(Clone, Debug)]
struct Plan {
    config: Config,
    depth: usize,
    /// Whether it leaves without waiting for replies.
    hasty: bool,
    split: Split,
    options: Vec<u8>,
    commands: Vec<[u8; 8]>,
}

impl Plan {
    fn take(choices: &mut Choices<'_>) -> Self {
        let [one, two, three, split @ ..]: [u8; 5] = choices.bytes();
        let bit = |byte: u8, bit: u8| byte >> bit & 1 == 1;
        let mut config = Config::for_export("disk");
        config.extended_headers = !bit(one, 0);
        config.structured_replies = !bit(one, 1);
        config.fixed_newstyle = !bit(one, 2);
        config.no_zeroes = !bit(one, 3);
        config.oldstyle = !bit(one, 4);
        config.tls = match one >> 5 & 3 {
            2 => TlsMode::Preferred,
            3 => TlsMode::Required,
            _ => TlsMode::Off,
        };
        config.strict = !bit(one, 7);
        config.goal = match two & 3 {
            0 => Goal::Manual,
            1 => Goal::Prepare,
            _ => Goal::Enter,
        };
        if bit(two, 2) {
            config.contexts = vec!["base:allocation".into(), "x-a:one".into()];
        }
        if bit(two, 3) {
            config.info = ITEMS.to_vec();
        }
        config.limits = limits(bit(two, 4));
        let options = usize::from(choices.byte() & 15);
        let options = (0..options).map(|_| choices.byte()).collect();
        let commands = usize::from(choices.byte() & 31);
        let commands = (0..commands).map(|_| choices.bytes()).collect();
        let split = Split::Cycle(split.map(|size| usize::from(size).max(1)).to_vec());
        let (depth, hasty) = (usize::from(three & 7) + 1, bit(three, 3));
        Self { config, depth, hasty, split, options, commands }
    }
}

const ITEMS: [InfoType; 3] = [InfoType::BLOCK_SIZE, InfoType::NAME, InfoType::DESCRIPTION];

fn limits(small: bool) -> Limits {
    let mut limits = Limits::DEFAULT;
    limits.max_in_flight = 8;
    if small {
        (limits.max_in_flight, limits.max_payload) = (2, 4096);
        (limits.max_option_reply, limits.max_option_replies) = (64, 4);
        (limits.max_contexts, limits.max_fragments, limits.max_reply_extents) = (1, 3, 4);
    }
    limits
}

/// A command in 8 bytes: what, where, how much.
fn command([what, a, b, c, d, length @ ..]: [u8; 8]) -> (Command, bool) {
    let offset = u64::from(u32::from_be_bytes([a, b, c, d]));
    let [high, middle, low] = length;
    let long = u64::from(u32::from_be_bytes([0, high, middle, low]));
    let short = long.min(MAX);
    let mut flags = CommandFlags::empty();
    flags.set(CommandFlags::FUA | CommandFlags::DF | CommandFlags::REQ_ONE, what & 16 != 0);
    flags.set(CommandFlags::NO_HOLE, what & 32 != 0);
    flags.set(CommandFlags::FAST_ZERO, what & 64 != 0);
    let command = match what & 15 {
        1 => Command::write(offset, short),
        2 => Command::flush(),
        3 => Command::trim(offset, long),
        4 => Command::cache(offset, long),
        5 => Command::write_zeroes(offset, long),
        6 | 7 => Command::block_status(offset, long),
        8 => Command::resize(offset),
        _ => Command::read(offset, short),
    };
    let command = with_flags(command, flags);
    (command, what & 15 == 7)
}

/// The buffer of a request that completed, and its result.
type Outcome = (Buffer, Result<(), CommandError>);

/// Says what the plan has.
#[derive(Debug)]
struct Planner {
    plan: Plan,
    next_option: usize,
    next_command: usize,
    /// What each request came to, unless it was abandoned.
    ended: BTreeMap<usize, Option<Outcome>>,
}

impl Planner {
    /// The next option, or on to the export.
    fn negotiate(&mut self, connection: &mut Client) {
        while let Some(option) = self.plan.options.get(self.next_option) {
            self.next_option += 1;
            let name = if option & 16 == 0 { "disk" } else { "" };
            let queries: &[&str] =
                if option & 32 == 0 { &["base:allocation", "x-a:one"] } else { &["base:"] };
            let said = match option & 15 {
                0 => connection.structured_reply(),
                1 => connection.extended_headers(),
                2 => connection.list(),
                3 => connection.info(name, &ITEMS),
                4 => connection.go(name, &ITEMS[..1]),
                5 => connection.list_meta_context(name, queries),
                6 => connection.set_meta_context(name, queries),
                7 => connection.export_name(name),
                8 => connection.abort(),
                9 => connection.start_tls(),
                10 => connection.option(OptionCode(77), b"data"),
                11 => connection.enter(name),
                12 => {
                    connection.disconnect();
                    return;
                }
                _ => continue,
            };
            if said.is_ok() {
                return;
            }
        }
        if connection.enter("disk").is_err() {
            connection.disconnect();
        }
    }

    fn submit(&mut self, connection: &mut Client) {
        while connection.requests_in_flight() < self.plan.depth {
            let Some(bytes) = self.plan.commands.get(self.next_command) else { break };
            self.next_command += 1;
            let (command, listed) = command(*bytes);
            let bytes = vec![connection.submitted as u8; command.buffer_length() as usize];
            let _refused = match command {
                Command::BlockStatus { offset, length, one, .. } if listed => {
                    let contexts = connection.export().map(|view| view.contexts.to_vec());
                    let ids: Vec<u32> =
                        contexts.unwrap_or_default().iter().map(|context| context.id).collect();
                    connection.begin_block_status((offset, length, one), &ids)
                }
                _ => connection.begin(command, bytes),
            };
        }
        if self.next_command == self.plan.commands.len() {
            if self.plan.hasty {
                connection.disconnect_now();
            } else {
                connection.disconnect();
            }
        }
    }
}

impl Actor for Planner {
    fn event(&mut self, connection: &mut Client, event: Event, buffer: Option<Buffer>) {
        if let Some(buffer) = buffer {
            let tag = buffer.tag;
            let outcome = match &event {
                Event::Completed { result, .. } => Some((buffer, result.clone())),
                // How far it got depends on how the stream is cut.
                _ => None,
            };
            assert!(self.ended.insert(tag, outcome).is_none(), "{tag} ends twice");
        }
        match event {
            Event::YourTurn | Event::OptionDone { .. } | Event::OptionFailed { .. } => {
                self.negotiate(connection);
            }
            Event::Ready => self.submit(connection),
            Event::Completed { .. } => self.submit(connection),
            _ => {}
        }
    }
}

/// Feeds a server's bytes to the client's machine, in one piece and in several, while options are sent and requests
/// submitted.
///
/// No panic, no endless loop, never more bytes consumed than given, nothing outside of a request's buffer, the same events
/// and output for every way to cut the stream, each request ended once, nothing after the end, output that the codec understands.
pub fn client(data: &[u8]) {
    let mut choices = Choices::new(data);
    let plan = Plan::take(&mut choices);
    let stream = choices.rest();
    let whole = once(&plan, stream, Split::Whole, Split::Whole);
    let pieces = once(&plan, stream, plan.split.clone(), Split::Cycle(vec![7]));
    if whole.error() == Some(PeerMisbehaved::PlaintextAfterStartTls.into()) {
        // In pieces, what follows the acknowledgement may come after the handshake.
        let agreed = whole.log.iter().take_while(|line| !line.starts_with("error"));
        let agreed: Vec<_> = agreed.cloned().collect();
        assert!(pieces.log.starts_with(&agreed));
        return;
    }
    assert_eq!(whole.log, pieces.log, "events depend on how the stream is cut");
    assert_eq!(whole.actor.ended, pieces.actor.ended, "results depend on how the stream is cut");
    // What is queued when the server turns out to be wrong is not sent any more.
    let same = whole.output == pieces.output;
    let less = whole.error().is_some() && pieces.output.starts_with(&whole.output);
    assert!(same || less, "requests depend on how the stream is cut");
}

fn once(plan: &Plan, stream: &[u8], mut split: Split, pieces: Split) -> ClientEnd<Planner> {
    let connection = Connection::new(plan.config.clone()).expect("the configuration is valid");
    let planner =
        Planner { plan: plan.clone(), next_option: 0, next_command: 0, ended: BTreeMap::new() };
    let mut client = client_end(connection, planner, pieces);
    let mut rest = stream;
    while !rest.is_empty() && !client.ended() {
        let (piece, after) = rest.split_at(split.next(rest.len()));
        rest = after;
        client.receive(piece);
    }
    let newstyle = stream.get(8..16) == Some(b"IHAVEOPT");
    if !client.ended() {
        client.close();
    }
    assert!(client.actor.ended.keys().copied().eq(0..client.submitted), "a request is lost");
    // Where the machine hung up, its last message may be unsent.
    if client.error().is_none() {
        reparse::client(&client.output, newstyle, client.extended);
    }
    client
}

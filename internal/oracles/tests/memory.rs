//! What a peer can make a connection hold, measured: against the formula that `Limits` states.

use nbd_proto::client::{self, Goal};
use nbd_proto::server::{self, Event};
use nbd_proto::wire::{
    ClientFlags, CommandFlags, CommandType, CompactRequest, ErrorChunk, ErrorCode,
    ExtendedReplyHeader, ExtendedRequest, MetaContextRequest, OptionCode, OptionHeader,
    OptionReplyHeader, OptionReplyType, ReplyFlags, ReplyType, TransmissionFlags,
};
use nbd_proto::{Command, ContextInfo, ExportInfo, Extent, Limits, Wants};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes that were held at once while `run` ran, above what was held before.
fn peak(run: impl FnOnce()) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    run();
    ALLOCATOR.peak_usage().saturating_sub(before)
}

fn option(code: OptionCode, data: &[u8]) -> Vec<u8> {
    let header = OptionHeader { code, length: data.len() as u32 };
    [&header.encode()[..], data].concat()
}

/// A client's handshake with extended headers and all contexts.
fn handshake(info: &ExportInfo) -> Vec<u8> {
    let mut set = Vec::new();
    let names = info.contexts.iter().map(ContextInfo::name);
    MetaContextRequest::encode("", names, &mut set);
    let flags = (ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES).bits().to_be_bytes();
    [
        &flags[..],
        &option(OptionCode::EXTENDED_HEADERS, &[]),
        &option(OptionCode::SET_META_CONTEXT, &set),
        &option(OptionCode::GO, &[0; 6]),
    ]
    .concat()
}

fn export() -> ExportInfo {
    let mut info = ExportInfo::new(1 << 62);
    info.flags = TransmissionFlags::all() - TransmissionFlags::READ_ONLY;
    let names = (0..16).filter_map(|number| ContextInfo::new(format!("x-test:{number}")));
    info.contexts = names.collect();
    info
}

/// Gives a server what a client sends, over and over, until it takes no more. The client reads no replies.
fn flood(limits: Limits, head: &[u8], body: &[u8]) {
    let info = export();
    let mut config = server::Config::default();
    config.limits = limits;
    let mut connection = server::Connection::new(config);
    let mut input = head;
    for _ in 0..1_000_000 {
        match connection.next_event(&mut input) {
            Some(Event::Lookup(_)) => {
                connection.answer_lookup(Ok(&info)).expect("it was asked");
            }
            Some(Event::Request { id, .. }) => {
                answer(connection.reply(id).expect("it was raised"));
            }
            Some(Event::Closed(_)) => return,
            Some(_) => {}
            None => match connection.wants() {
                Wants::Bytes { .. } => input = body,
                Wants::Payload { remaining, .. } => {
                    connection.payload_received(remaining).expect("it is due");
                }
                _ => return,
            },
        }
    }
    panic!("the server never stops reading");
}

/// With as much as a reply can hold.
fn answer(mut reply: server::Reply<'_>) {
    match reply.command() {
        Command::Read { offset, length, .. } => {
            reply.data(offset, length / 2).expect("it is inside");
            reply.hole(offset + length / 2, length - length / 2).expect("it is inside");
            reply.finish().expect("it is told");
        }
        Command::BlockStatus { .. } => {
            for context in reply.awaited_contexts() {
                let extents = (0_u64..).map(|at| Extent { length: 512, status: at % 2 });
                reply.extents(context, extents).expect("it is awaited");
            }
            reply.finish().expect("it is told");
        }
        _ => reply.error(ErrorCode::EIO, &"long ".repeat(2000)),
    }
}

fn request(command: CommandType, length: u64) -> Vec<u8> {
    let flags = CommandFlags::empty();
    ExtendedRequest { flags, command, cookie: 0, offset: 0, length }.encode().to_vec()
}

/// The formula of a server connection, and what option replies may wait.
fn server_bound(limits: &Limits) -> usize {
    let in_flight = limits.max_in_flight as usize;
    let contexts = limits.max_contexts as usize;
    limits.max_option_data as usize
        + in_flight * (192 + 32 + 4128)
        + status_bytes(limits, in_flight * contexts)
        + limits.max_extents as usize * 16
        + (256 << 10)
}

/// The part of `max_in_flight_bytes` that block status replies can take: what they count for, but one of them at least.
fn status_bytes(limits: &Limits, chunks: usize) -> usize {
    let chunk = limits.max_extents as usize * 16;
    let one = limits.max_contexts as usize * chunk;
    (limits.max_in_flight_bytes as usize).max(one).min(chunks * chunk)
}

/// The formula of a client connection.
fn client_bound(limits: &Limits) -> usize {
    let (in_flight, contexts) = (limits.max_in_flight as usize, limits.max_contexts as usize);
    limits.max_option_reply as usize
        + contexts * 4096
        + in_flight * (256 + 32 + 3 * 4096)
        + in_flight * limits.max_fragments as usize * 24
        + in_flight * contexts * 4
        + 16384
}

/// Vectors hold up to twice what is in them, and half of that again while they grow.
///
/// The most that was seen is 1.8 times the formula, with as many block status replies as fit.
const SLACK: usize = 3;

fn small() -> Limits {
    let mut limits = Limits::DEFAULT;
    (limits.max_in_flight, limits.max_in_flight_bytes) = (4, 1 << 16);
    (limits.max_option_data, limits.max_extents, limits.max_fragments) = (4096, 100, 64);
    limits
}

/// The defaults, with fewer requests so that it does not take long.
fn usual() -> Limits {
    let mut limits = Limits::DEFAULT;
    limits.max_in_flight = 16;
    limits
}

fn servers() {
    let info = export();
    let enter = handshake(&info);
    let flags = &enter[..4];
    let huge = OptionHeader { code: OptionCode::INFO, length: 16 << 20 }.encode();
    let long = option(OptionCode::SET_META_CONTEXT, &vec![0; 60_000]);
    let large = option(OptionCode(99), &vec![b'x'; 4000]);
    for limits in [small(), usual()] {
        let bound = SLACK * server_bound(&limits);
        for (what, head, body) in [
            ("a huge option", [flags, &huge].concat(), vec![0; 5000]),
            ("long options", flags.to_vec(), long.clone()),
            ("unknown options", flags.to_vec(), large.clone()),
            ("reads", enter.clone(), request(CommandType::READ, 4096)),
            ("maps", enter.clone(), request(CommandType::BLOCK_STATUS, 1 << 60)),
            ("failures", enter.clone(), request(CommandType::FLUSH, 0)),
            ("refusals", enter.clone(), request(CommandType(99), 0)),
            ("writes", enter.clone(), request(CommandType::WRITE, 1 << 20)),
        ] {
            let held = peak(|| flood(limits, &head, &body));
            assert!(held <= bound, "{what}: {held} bytes, the bound is {bound}");
        }
    }
}

/// Gives a client what a server sends, over and over, until it takes no more. It reads and asks for maps.
fn drown(limits: Limits, head: &[u8], body: &[u8], command: Command) {
    let mut config = client::Config::for_export("disk");
    config.limits = limits;
    config.goal = Goal::Enter;
    config.contexts = vec!["x-test:1".into()];
    let mut connection = client::Connection::new(config).expect("it is valid");
    let mut input = head;
    for _ in 0..2_000_000 {
        let unsent = connection.segments().map(|segment| segment.len()).sum();
        let _ = connection.transmitted(unsent).expect("there was as much");
        match connection.next_event(&mut input) {
            Some(client::Event::Ready) => while connection.submit(command).is_ok() {},
            Some(client::Event::Closed(_)) => return,
            Some(_) => {}
            None => match connection.wants() {
                Wants::Payload { remaining, .. } => {
                    connection.payload_received(remaining).expect("it is due");
                }
                Wants::Bytes { .. } if body.is_empty() => return,
                Wants::Bytes { .. } => input = body,
                _ => return,
            },
        }
    }
    panic!("the client never stops reading");
}

fn reply(code: OptionCode, reply: OptionReplyType, data: &[u8]) -> Vec<u8> {
    let header = OptionReplyHeader { code, reply, length: data.len() as u32 };
    [&header.encode()[..], data].concat()
}

fn chunk(flags: ReplyFlags, reply: ReplyType, offset: u64, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u64;
    let header = ExtendedReplyHeader { flags, reply, cookie: 0, offset, length };
    [&header.encode()[..], payload].concat()
}

fn clients() {
    let read = Command::read(0, 1 << 20);
    let map = Command::block_status(0, 1 << 40);
    let ack = |code| reply(code, OptionReplyType::ACK, &[]);
    let context = |id: u32| {
        let name = format!("x-test:{}", "y".repeat(4000));
        reply(
            OptionCode::SET_META_CONTEXT,
            OptionReplyType::META_CONTEXT,
            &[&id.to_be_bytes()[..], name.as_bytes()].concat(),
        )
    };
    let greeting = [b"NBDMAGICIHAVEOPT\0\x03", &ack(OptionCode::EXTENDED_HEADERS)[..]].concat();
    let info = [&[0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0][..], &0x0fed_u16.to_be_bytes()].concat();
    let enter = [
        &greeting[..],
        &context(1),
        &ack(OptionCode::SET_META_CONTEXT),
        &reply(OptionCode::GO, OptionReplyType::INFO, &info),
        &ack(OptionCode::GO),
    ]
    .concat();
    let none = ReplyFlags::empty();
    // A piece of every other kilobyte, so that each is one of its own.
    let fragment = |at: u64| {
        let hole = [&(at * 2048).to_be_bytes()[..], &1024_u32.to_be_bytes()].concat();
        chunk(none, ReplyType::OFFSET_HOLE, 0, &hole)
    };
    let fragments: Vec<u8> = (0..512).flat_map(fragment).collect();
    let mut error = Vec::new();
    let message = vec![b'x'; 4096];
    ErrorChunk { error: ErrorCode::EIO, message: &message, offset: None }.encode(&mut error);
    let error = chunk(none, ReplyType::ERROR, 0, &error);
    let count: u32 = 1 << 20;
    let head = [&1_u32.to_be_bytes()[..], &count.to_be_bytes()].concat();
    let length = 8 + 16 * u64::from(count);
    let (flags, kind) = (ReplyFlags::DONE, ReplyType::BLOCK_STATUS_EXT);
    let header = ExtendedReplyHeader { flags, reply: kind, cookie: 0, offset: 0, length }.encode();
    let extents = [512_u64.to_be_bytes(), 0_u64.to_be_bytes()].concat();
    let huge =
        OptionReplyHeader { code: OptionCode::GO, reply: OptionReplyType::INFO, length: u32::MAX };
    for limits in [small(), usual()] {
        let bound = SLACK * client_bound(&limits);
        for (what, head, body, command) in [
            ("contexts", greeting.clone(), (1..=20).flat_map(context).collect(), map),
            ("a huge reply", [&greeting[..], &huge.encode()].concat(), vec![0; 5000], map),
            ("fragments", [&enter[..], &fragments].concat(), vec![], read),
            ("errors", enter.clone(), error.clone(), read),
            ("extents", [&enter[..], &header, &head].concat(), extents.clone(), map),
        ] {
            let held = peak(|| drown(limits, &head, &body, command));
            assert!(held <= bound, "{what}: {held} bytes, the bound is {bound}");
        }
    }
}

/// The size of a compact request must not matter either.
fn compact() {
    let (command, length) = (CommandType::WRITE, u32::MAX);
    let flags = CommandFlags::empty();
    let write = CompactRequest { flags, command, cookie: 1, offset: 0, length }.encode();
    let enter = [&3_u32.to_be_bytes()[..], &option(OptionCode::GO, &[0; 6])].concat();
    let held = peak(|| flood(Limits::DEFAULT, &enter, &write));
    assert!(held <= SLACK * server_bound(&Limits::DEFAULT), "{held}");
}

/// One test, since what others allocate at the same time would count.
#[test]
fn a_connections_memory_stays_within_its_bounds() {
    servers();
    clients();
    compact();
}

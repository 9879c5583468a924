//! A client that is busy allocates nothing: each request finds the memory of those before it.

use std::sync::atomic::{AtomicUsize, Ordering};

use nbd_proto::client::{Config, Connection, Event};
use nbd_proto::wire::{
    ExtendedReplyHeader, ReplyFlags, ReplyType, SimpleReplyHeader, StructuredReplyHeader,
};
use nbd_proto::{Command, RequestId, Wants, wire};
use nbd_support::counting::{Counting, count_this_thread};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the test's own thread: what the test harness does beside it must not count.
static COUNTER: AtomicUsize = AtomicUsize::new(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Simple,
    Structured,
    Extended,
}

fn option_reply(code: wire::OptionCode, reply: wire::OptionReplyType, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    [&wire::OptionReplyHeader { code, reply, length }.encode()[..], data].concat()
}

fn transmitting(mode: Mode) -> Connection {
    let mut config = Config::for_export("disk");
    config.extended_headers = mode == Mode::Extended;
    config.structured_replies = mode == Mode::Structured;
    let mut connection = Connection::new(config).expect("it is valid");
    let flags = wire::TransmissionFlags::HAS_FLAGS | wire::TransmissionFlags::SEND_FLUSH;
    let info = wire::ExportInfoReply { size: 1 << 20, flags }.encode();
    let (ack, go) = (wire::OptionReplyType::ACK, wire::OptionCode::GO);
    let headers = match mode {
        Mode::Simple => vec![],
        Mode::Structured => option_reply(wire::OptionCode::STRUCTURED_REPLY, ack, b""),
        Mode::Extended => option_reply(wire::OptionCode::EXTENDED_HEADERS, ack, b""),
    };
    let bytes = [
        &b"NBDMAGICIHAVEOPT\0\x03"[..],
        &headers,
        &option_reply(go, wire::OptionReplyType::INFO, &info),
        &option_reply(go, ack, b""),
    ]
    .concat();
    let mut input = &bytes[..];
    while let Some(event) = connection.next_event(&mut input) {
        assert_eq!(event, Event::Ready);
    }
    assert!(connection.is_transmitting());
    connection
}

/// Puts the head of a reply without an error, and of the data that may follow, into `reply`.
fn put_reply(mode: Mode, cookie: u64, command: Command, reply: &mut Vec<u8>) {
    let (offset, data) = (command.offset(), matches!(command, Command::Read { .. }));
    let kind = if data { ReplyType::OFFSET_DATA } else { ReplyType::NONE };
    let length = if data { command.length() + 8 } else { 0 };
    let flags = ReplyFlags::DONE;
    match mode {
        Mode::Simple => {
            let header = SimpleReplyHeader { error: wire::ErrorCode::OK, cookie };
            reply.extend_from_slice(&header.encode());
            return;
        }
        Mode::Structured => {
            let header =
                StructuredReplyHeader { flags, reply: kind, cookie, length: length as u32 };
            reply.extend_from_slice(&header.encode());
        }
        Mode::Extended => {
            let header = ExtendedReplyHeader { flags, reply: kind, cookie, offset, length };
            reply.extend_from_slice(&header.encode());
        }
    }
    if data {
        reply.extend_from_slice(&offset.to_be_bytes());
    }
}

/// Submits some requests, has some answered before they are transmitted, and all in the end.
fn round(mode: Mode, connection: &mut Connection, reply: &mut Vec<u8>, ids: &mut Vec<RequestId>) {
    ids.clear();
    for command in [
        Command::read(512, 4096),
        Command::write(0, 4096),
        Command::flush(),
        Command::read(8192, 512),
    ] {
        let queued: usize = connection.segments().map(|segment| segment.len()).sum();
        ids.push(connection.submit(command).expect("there is room"));
        let mut skipped = 0;
        let mut cookie = None;
        for segment in connection.segments() {
            if let nbd_proto::Segment::Control(bytes) = segment
                && let Some(header) = queued.checked_sub(skipped).and_then(|at| bytes.get(at..))
            {
                let field = header.get(8..).and_then(|rest| rest.first_chunk());
                cookie = field.map(|bytes| u64::from_be_bytes(*bytes));
            }
            skipped += segment.len();
        }
        reply.clear();
        put_reply(mode, cookie.expect("it is queued"), command, reply);
        if let Command::Read { .. } = command {
            let queued = connection.segments().map(|segment| segment.len()).sum();
            let _ = connection.transmitted(queued).expect("there was as much");
        }
        let mut input = &reply[..];
        loop {
            match connection.next_event(&mut input) {
                Some(Event::Completed { id, result: Ok(()) }) => ids.retain(|other| *other != id),
                Some(event) => panic!("{event:?}"),
                None => match connection.wants() {
                    Wants::Payload { remaining, .. } => {
                        connection.payload_received(remaining).expect("it is due");
                    }
                    _ => break,
                },
            }
        }
    }
    assert!(ids.is_empty(), "all are answered");
}

#[test]
fn a_busy_client_allocates_nothing() {
    count_this_thread(&COUNTER);
    drop(std::hint::black_box(Box::new(0)));
    assert_eq!(COUNTER.load(Ordering::Relaxed), 1, "an allocation is counted");
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut connection = transmitting(mode);
        let (mut reply, mut ids) = (Vec::with_capacity(64), Vec::with_capacity(8));
        for _ in 0..100 {
            round(mode, &mut connection, &mut reply, &mut ids);
        }
        let before = COUNTER.load(Ordering::Relaxed);
        for _ in 0..1000 {
            round(mode, &mut connection, &mut reply, &mut ids);
        }
        assert_eq!(COUNTER.load(Ordering::Relaxed) - before, 0, "{mode:?}");
    }
}

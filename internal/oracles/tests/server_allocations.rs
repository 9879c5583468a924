//! A server that is busy allocates nothing: each request finds the memory of those before it.

use std::sync::atomic::{AtomicUsize, Ordering};

use nbd_proto::server::{Config, Connection, Event};
use nbd_proto::wire::{
    CommandFlags, CommandType, CompactRequest, ExtendedRequest, InfoRequest, MetaContextRequest,
    OptionCode, OptionHeader, TransmissionFlags,
};
use nbd_proto::{Command, ContextInfo, ExportInfo, Extent, RecvBuffer, RequestId, Wants};
use nbd_support::counting::{Counting, count_this_thread};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the test's own thread: what the test harness does beside it must not count.
static COUNTER: AtomicUsize = AtomicUsize::new(0);

const SIZE: u64 = 1 << 20;

fn option(code: OptionCode, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    [&OptionHeader { code, length }.encode()[..], data].concat()
}

/// A server in transmission, by what was agreed before.
fn transmitting(headers: Option<OptionCode>) -> Connection {
    let mut info = ExportInfo::new(SIZE);
    info.flags = TransmissionFlags::all() - TransmissionFlags::READ_ONLY;
    info.contexts = vec![ContextInfo::base_allocation()];
    let (mut go, mut meta) = (Vec::new(), Vec::new());
    InfoRequest::encode("", &[], &mut go);
    MetaContextRequest::encode("", ["base:allocation"].into_iter(), &mut meta);
    let bytes = [
        vec![0, 0, 0, 3],
        headers.map(|code| option(code, &[])).unwrap_or_default(),
        headers.map(|_| option(OptionCode::SET_META_CONTEXT, &meta)).unwrap_or_default(),
        option(OptionCode::GO, &go),
    ]
    .concat();
    let mut connection = Connection::new(Config::default());
    let mut input = &bytes[..];
    while let Some(event) = connection.next_event(&mut input) {
        assert!(matches!(event, Event::Lookup(_)), "{event:?}");
        connection.answer_lookup(Ok(&info)).expect("it was asked");
    }
    assert!(connection.is_transmitting());
    connection
}

/// What a client sends over and over: its requests, with the payload of the write.
fn requests(extended: bool, contexts: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |command, flags, length, payload: &[u8]| {
        let request = CompactRequest { flags, command, cookie: 7, offset: 512, length };
        if extended {
            bytes.extend_from_slice(&ExtendedRequest::from(request).encode());
        } else {
            bytes.extend_from_slice(&request.encode());
        }
        bytes.extend_from_slice(payload);
    };
    let (none, fua) = (CommandFlags::empty(), CommandFlags::FUA);
    put(CommandType::READ, none, 4096, &[]);
    put(CommandType::WRITE, fua, 4096, &[7; 4096]);
    put(CommandType::FLUSH, none, 0, &[]);
    put(CommandType::TRIM, none, 512, &[]);
    put(CommandType::READ, none, 0, &[]);
    if contexts {
        put(CommandType::READ, CommandFlags::DF, 1024, &[]);
        put(CommandType::BLOCK_STATUS, none, 4096, &[]);
    }
    bytes
}

/// Serves all of it, in pieces, and answers the last request first.
fn round(
    connection: &mut Connection,
    bytes: &[u8],
    received: &mut RecvBuffer,
    open: &mut Vec<RequestId>,
) {
    let mut pieces = bytes.chunks(1000);
    loop {
        if let Some(event) = connection.next_event(received) {
            let Event::Request { id, .. } = event else { panic!("{event:?}") };
            open.push(id);
            continue;
        }
        match connection.wants() {
            Wants::Payload { remaining, .. } if !received.is_empty() => {
                let count = received.unread().len().min(remaining as usize);
                received.consume(count);
                connection.payload_received(count as u64).expect("it is due");
            }
            wants => {
                assert!(matches!(wants, Wants::Bytes { .. } | Wants::Payload { .. }), "{wants:?}");
                let Some(piece) = pieces.next() else { break };
                received.spare_capacity_mut()[..piece.len()].copy_from_slice(piece);
                received.advance(piece.len());
            }
        }
    }
    while let Some(id) = open.pop() {
        let mut reply = connection.reply(id).expect("it is open");
        match reply.command() {
            Command::Read { offset, length, .. } => {
                reply.hole(offset + length / 2, length - length / 2).expect("it is a part");
                reply.data(offset, length / 2).expect("it is a part");
            }
            Command::BlockStatus { .. } => {
                let extents = (0..8).map(|at| Extent { length: 512, status: at % 2 });
                let context = reply.awaited_contexts().next().expect("one was selected");
                reply.extents(context, extents).expect("it is awaited");
            }
            _ => {}
        }
        reply.finish().expect("all is said");
    }
    while let Some(segment) = connection.segments().next() {
        let count = segment.len().div_ceil(2);
        connection.transmitted(count).expect("there was as much").for_each(drop);
    }
    assert_eq!(connection.requests_in_flight(), 0);
}

#[test]
fn a_busy_server_allocates_nothing() {
    count_this_thread(&COUNTER);
    drop(std::hint::black_box(Box::new(0)));
    assert_eq!(COUNTER.load(Ordering::Relaxed), 1, "an allocation is counted");
    for headers in [None, Some(OptionCode::STRUCTURED_REPLY), Some(OptionCode::EXTENDED_HEADERS)] {
        let mut connection = transmitting(headers);
        let bytes = requests(headers == Some(OptionCode::EXTENDED_HEADERS), headers.is_some());
        let (mut received, mut open) = (RecvBuffer::new(), Vec::with_capacity(16));
        for _ in 0..100 {
            round(&mut connection, &bytes, &mut received, &mut open);
        }
        let before = COUNTER.load(Ordering::Relaxed);
        for _ in 0..1000 {
            round(&mut connection, &bytes, &mut received, &mut open);
        }
        assert_eq!(COUNTER.load(Ordering::Relaxed) - before, 0, "{headers:?}");
    }
}

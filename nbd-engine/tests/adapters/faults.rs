//! Exports that do not keep their side of the contract.

use std::sync::atomic::{AtomicU8, Ordering};

use nbd_engine::export::{Body, Export, ExportError, Handle, Result, Shared};
use nbd_engine::proto::wire::ErrorCode;
use nbd_testkit::raw::{Errno, Mode, RawClient, Request};
use nbd_testkit::server::Transport;

use super::disks::{Call, KINDS, Kind, SIZE, Scripted, only};
use super::{Adapter, Server};

fn a_panic_fails_the_request_alone<A: Adapter>(kind: Kind, transport: Transport) {
    let act = |call| match call {
        Call::Read | Call::Write { .. } | Call::Flush => panic!("this export panics"),
        _ => Ok(()),
    };
    let (_disk, exports) = Scripted::new(kind).doing(act).share();
    let server = Server::<A>::start(transport, exports);
    let mut bystander = server.client();
    let mut client = server.client();
    for request in [
        Request::read(0, 512),
        Request::write(0, &[1; 512]),
        Request::write(0, &[1; 100_000]),
        Request::flush(),
    ] {
        client.call(&request).expect_error(Errno::EIO);
        client.call(&Request::trim(0, 4096)).ok();
        bystander.call(&Request::trim(0, 4096)).ok();
    }
    client.finish();
    bystander.finish();
    server.client().finish();
    server.expect_no_connections();
    server.stop();
}

pub(crate) fn an_export_that_panics_fails_the_request_alone<A: Adapter>(transport: Transport) {
    a_panic_fails_the_request_alone::<A>(Kind::Worker, transport);
}

pub(crate) fn an_export_that_panics_inline_fails_the_request_alone<A: Adapter>(
    transport: Transport,
) {
    a_panic_fails_the_request_alone::<A>(Kind::Inline, transport);
}

pub(crate) fn an_async_export_that_panics_fails_the_request_alone<A: Adapter>(
    transport: Transport,
) {
    a_panic_fails_the_request_alone::<A>(Kind::Async, transport);
}

/// Ways to read another length than what was asked for.
const WRONG_READS: u8 = 6;

/// A disk that reads wrongly, the first times in a different way each, and then well.
struct WrongLength {
    never_blocks: bool,
    reads: AtomicU8,
}

impl Export for WrongLength {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(3);
        Ok(())
    }

    fn read_body(&self, body: &mut Body, length: usize, _offset: u64) -> Result<()> {
        match self.reads.fetch_add(1, Ordering::Relaxed) {
            // Nothing at all, too little, too much.
            0 => {}
            1 => body.fill(length - 1).fill(3),
            2 => body.fill(length + 1).fill(3),
            // Too much by a hole; more than a request can ask for.
            3 => {
                body.hole(length);
                body.fill(1).fill(3);
            }
            4 => body.hole(usize::MAX / 2),
            // A range that does not lie in its slice.
            5 => body.share(Shared::Slice(vec![3; length].into(), 1..length + 1)),
            _ => body.fill(length).fill(3),
        }
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        self.never_blocks
    }
}

pub(crate) fn a_read_of_the_wrong_length_is_eio<A: Adapter>(transport: Transport) {
    for never_blocks in [true, false] {
        for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
            let disk = WrongLength { never_blocks, reads: AtomicU8::new(0) };
            let server = Server::<A>::start(transport, only(Handle::new(disk)));
            let mut client = RawClient::negotiate(&server.endpoint);
            match mode {
                Mode::Simple => {}
                Mode::Structured => client.structured_reply().unwrap(),
                Mode::Extended => client.extended_headers().unwrap(),
            }
            client.go("", &[]).unwrap();
            for _ in 0..WRONG_READS {
                client.call(&Request::read(0, 4096)).expect_error(Errno::EIO);
            }
            assert_eq!(client.read(0, 8), [3; 8]);
            client.finish();
            server.stop();
        }
    }
}

/// A disk whose reads have pieces of no length among those that count.
struct EmptyPieces;

impl Export for EmptyPieces {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(3);
        Ok(())
    }

    fn read_body(&self, body: &mut Body, length: usize, _offset: u64) -> Result<()> {
        for part in [1, length - 1] {
            body.fill(0);
            body.hole(0);
            body.share(Shared::Slice(Vec::new().into(), 0..0));
            body.fill(part).fill(3);
        }
        body.hole(0);
        Ok(())
    }
}

pub(crate) fn pieces_of_no_length_do_no_harm<A: Adapter>(transport: Transport) {
    let server = Server::<A>::start(transport, only(Handle::new(EmptyPieces)));
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut client = RawClient::negotiate(&server.endpoint);
        match mode {
            Mode::Simple => {}
            Mode::Structured => client.structured_reply().unwrap(),
            Mode::Extended => client.extended_headers().unwrap(),
        }
        client.go("", &[]).unwrap();
        assert_eq!(client.read(0, 8), [3; 8]);
        // The parts make chunks of odd lengths, which the client remarks on.
        client.leave();
    }
    server.stop();
}

pub(crate) fn extents_that_tell_nothing_are_eio<A: Adapter>(transport: Transport) {
    for kind in KINDS {
        let (disk, exports) = Scripted::new(kind).share();
        let server = Server::<A>::start(transport, exports);
        for mode in [Mode::Structured, Mode::Extended] {
            let mut client = RawClient::go_in(mode, &server.endpoint);
            client.call(&Request::block_status(0, 4096)).expect_error(Errno::EIO);
            assert_eq!(disk.take_calls(), [Call::Extents], "{kind:?}");
            assert_eq!(client.read(0, 8), [0; 8], "{kind:?}");
            disk.take_calls();
            client.finish();
        }
        server.stop();
    }
}

pub(crate) fn errors_of_an_export_reach_the_client_with_their_text<A: Adapter>(
    transport: Transport,
) {
    for kind in KINDS {
        let act = |call| match call {
            Call::Write { .. } => Err(ExportError::no_space()),
            Call::Read => Err(ExportError::new(ErrorCode::EPERM, "not today")),
            // Not an error that a flush may have.
            Call::Flush => Err(ExportError::new(ErrorCode::ENOTSUP, "what?")),
            _ => Err(ExportError::io("worn out")),
        };
        let (_disk, exports) = Scripted::new(kind).doing(act).share();
        let server = Server::<A>::start(transport, exports);
        let mut client = RawClient::go_structured(&server.endpoint);
        for (request, error, text) in [
            (Request::write(0, &[1; 512]), Errno::ENOSPC, "no space is left"),
            (Request::read(0, 512), Errno::EPERM, "not today"),
            (Request::flush(), Errno::EINVAL, "what?"),
            (Request::block_status(0, 512), Errno::EIO, "worn out"),
        ] {
            let reply = client.call(&request);
            reply.expect_error(error);
            assert_eq!(reply.errors[0].text, text, "{kind:?}");
        }
        client.finish();
        server.stop();
    }
}

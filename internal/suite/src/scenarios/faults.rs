//! Exports that do not keep their side of the contract.

use std::sync::atomic::{AtomicU8, Ordering};

use nbd_engine::export::{Body, Export, ExportError, Result};
use nbd_engine::proto::wire::ErrorCode;
use nbd_engine::server::ServerConfig;
use nbd_testkit::raw::{Errno, Mode, Request};

use crate::Setup;
use crate::exports::{Call, Scripted};

/// Whatever panics, and on whatever thread: the request fails, its connection goes on, and so does everybody else.
pub fn a_panic_of_an_export_fails_the_request_alone(setup: Setup) {
    for way in Scripted::WAYS {
        let act = |call| match call {
            Call::Read | Call::Write { .. } | Call::Flush => {
                panic!("an export that panics, which is part of this test")
            },
            _ => Ok(()),
        };
        let (_disk, exports) = Scripted::new(way).doing(act).share();
        let server = setup.serve_with(exports, ServerConfig::default());
        let mut bystander = server.client(Mode::Simple);
        let mut client = server.client(Mode::Simple);
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
        server.client(Mode::Simple).finish();
        server.wait_for_connections(0);
        server.stop();
    }
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
        Scripted::SIZE
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(3);
        Ok(())
    }

    fn read_body(&self, body: &mut Body, length: usize, _offset: u64) -> Result<()> {
        match self.reads.fetch_add(1, Ordering::Relaxed) {
            // Nothing at all, too little, too much.
            0 => {}
            1 => body.fill(length - 1)?.fill(3),
            2 => body.fill(length + 1)?.fill(3),
            // Too much by a hole; more than a request can ask for.
            3 => {
                body.hole(length);
                body.fill(1)?.fill(3);
            }
            4 => body.hole(usize::MAX / 2),
            // A range that does not lie in its slice.
            5 => body.share_page(vec![3; length].into(), 1..length + 1),
            _ => body.fill(length)?.fill(3),
        }
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        self.never_blocks
    }
}

/// An export that reads less or more than it was asked for: the client gets no wrong byte, and no stream out of step.
pub fn a_read_of_the_wrong_length_is_eio(setup: Setup) {
    for never_blocks in [true, false] {
        for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
            let disk = WrongLength { never_blocks, reads: AtomicU8::new(0) };
            let server = setup.serve(disk);
            let mut client = server.client(mode);
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
        Scripted::SIZE
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(3);
        Ok(())
    }

    fn read_body(&self, body: &mut Body, length: usize, _offset: u64) -> Result<()> {
        for part in [1, length - 1] {
            body.fill(0)?;
            body.hole(0);
            body.share_page(Vec::new().into(), 0..0);
            body.fill(part)?.fill(3);
        }
        body.hole(0);
        Ok(())
    }
}

/// An export that reads in pieces of which some are empty.
pub fn pieces_of_no_length_do_no_harm(setup: Setup) {
    let server = setup.serve(EmptyPieces);
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut client = server.client(mode);
        assert_eq!(client.read(0, 8), [3; 8]);
        // The parts make chunks of odd lengths, which the client remarks on.
        client.leave();
    }
    server.stop();
}

/// An export that tells no extents where there must be one.
pub fn extents_that_tell_nothing_are_eio(setup: Setup) {
    for way in Scripted::WAYS {
        let (disk, exports) = Scripted::new(way).share();
        let server = setup.serve_with(exports, ServerConfig::default());
        for mode in [Mode::Structured, Mode::Extended] {
            let mut client = server.client(mode);
            client.call(&Request::block_status(0, 4096)).expect_error(Errno::EIO);
            assert_eq!(disk.take_calls(), [Call::Extents], "{way:?}");
            assert_eq!(client.read(0, 8), [0; 8], "{way:?}");
            disk.take_calls();
            client.finish();
        }
        server.stop();
    }
}

/// Errors are passed on, as far as the command may have them.
pub fn errors_of_an_export_reach_the_client_with_their_text(setup: Setup) {
    for way in Scripted::WAYS {
        let act = |call| match call {
            Call::Write { .. } => Err(ExportError::no_space()),
            Call::Read => Err(ExportError::new(ErrorCode::EPERM, "not today")),
            // Not an error that a flush may have.
            Call::Flush => Err(ExportError::new(ErrorCode::ENOTSUP, "what?")),
            _ => Err(ExportError::io("worn out")),
        };
        let (_disk, exports) = Scripted::new(way).doing(act).share();
        let server = setup.serve_with(exports, ServerConfig::default());
        let mut client = server.client(Mode::Structured);
        for (request, error, text) in [
            (Request::write(0, &[1; 512]), Errno::ENOSPC, "no space is left"),
            (Request::read(0, 512), Errno::EPERM, "not today"),
            (Request::flush(), Errno::EINVAL, "what?"),
            (Request::block_status(0, 512), Errno::EIO, "worn out"),
        ] {
            let reply = client.call(&request);
            reply.expect_error(error);
            assert_eq!(reply.errors[0].text, text, "{way:?}");
        }
        client.finish();
        server.stop();
    }
}

/// `ESHUTDOWN` arrives as given, and ends the connection that it was given to, in order.
pub fn an_export_that_shuts_down_ends_its_connections_alone(setup: Setup) {
    for way in Scripted::WAYS {
        let act = |call| match call {
            Call::Read => Err(ExportError::shutting_down("the disk is taken away")),
            _ => Ok(()),
        };
        let (_disk, exports) = Scripted::new(way).doing(act).share();
        let server = setup.serve_with(exports, ServerConfig::default());
        let mut other = server.client(Mode::Simple);
        for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
            let mut client = server.client(mode);
            let reply = client.call(&Request::read(0, 512));
            reply.expect_error(Errno::ESHUTDOWN);
            if mode != Mode::Simple {
                assert_eq!(reply.errors[0].text, "the disk is taken away", "{way:?}");
            }
            client.wire().expect_eof();
        }
        other.write(0, &[1; 512]);
        other.finish();
        server.stop();
    }
}

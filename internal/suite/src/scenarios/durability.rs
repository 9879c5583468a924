//! Flushes and force unit access.

use nbd_engine::server::ServerConfig;
use nbd_testkit::raw::{Mode, Request, cmd_flag, flag};

use crate::Setup;
use crate::exports::{Call, Scripted};

/// Each command that writes, and the call that it becomes.
fn writing(fua: bool) -> [(Request, Call); 3] {
    [
        (Request::write(0, &[1; 512]), Call::Write { fua }),
        (Request::trim(0, 4096), Call::Trim { fua }),
        (Request::write_zeroes(0, 4096), Call::Zero { fua }),
    ]
}

/// Where an export does not know FUA, its flush does it.
pub fn emulated_fua_flushes_once_after_the_write(setup: Setup) {
    for way in Scripted::WAYS {
        let (disk, exports) = Scripted::new(way).share();
        let server = setup.serve_with(exports, ServerConfig::default());
        let mut client = server.client(Mode::Simple);
        assert!(client.has_flag(flag::SEND_FUA), "{way:?}");
        for (request, call) in writing(false) {
            client.call(&request.clone().flags(cmd_flag::FUA)).ok();
            assert_eq!(disk.take_calls(), [call, Call::Flush], "{way:?}");
            client.call(&request).ok();
            assert_eq!(disk.take_calls(), [call], "{way:?} without the flag");
        }
        client.finish();
        server.stop();
    }
}

/// Where it does, nobody flushes besides.
pub fn native_fua_is_passed_down_and_nothing_is_flushed(setup: Setup) {
    for way in Scripted::WAYS {
        // Once with flushes, which are of no use then, and once without.
        for disk in [Scripted::new(way), Scripted::new(way).without_flush()] {
            let (disk, exports) = disk.with_native_fua().share();
            let server = setup.serve_with(exports, ServerConfig::default());
            let mut client = server.client(Mode::Simple);
            assert!(client.has_flag(flag::SEND_FUA), "{way:?}");
            for (request, call) in writing(true) {
                client.call(&request.flags(cmd_flag::FUA)).ok();
                assert_eq!(disk.take_calls(), [call], "{way:?}");
            }
            for (request, call) in writing(false) {
                client.call(&request).ok();
                assert_eq!(disk.take_calls(), [call], "{way:?} without the flag");
            }
            client.finish();
            server.stop();
        }
    }
}

/// Where nothing could make data durable, nothing says so.
pub fn fua_is_not_offered_without_flush_or_native_support(setup: Setup) {
    for way in Scripted::WAYS {
        let (disk, exports) = Scripted::new(way).without_flush().share();
        let server = setup.serve_with(exports, ServerConfig::default());
        let mut client = server.client(Mode::Simple);
        assert!(!client.has_flag(flag::SEND_FUA | flag::SEND_FLUSH), "{way:?}");
        client.write(0, &[1; 512]);
        assert_eq!(disk.take_calls(), [Call::Write { fua: false }], "{way:?}");
        client.finish();
        server.stop();
    }
}

/// A flush comes after all writes that were answered, whoever asked for them (`CAN_MULTI_CONN`).
pub fn flush_covers_writes_of_every_connection(setup: Setup) {
    for way in Scripted::WAYS {
        let (disk, exports) = Scripted::new(way).share();
        let server = setup.serve_with(exports, ServerConfig::default());
        let (mut writer, mut flusher) = (server.client(Mode::Simple), server.client(Mode::Simple));
        assert!(flusher.has_flag(flag::CAN_MULTI_CONN), "{way:?}");
        writer.write(0, &[1; 512]);
        writer.write(512, &[1; 100_000]);
        flusher.call(&Request::flush()).ok();
        let write = Call::Write { fua: false };
        assert_eq!(disk.take_calls(), [write, write, Call::Flush], "{way:?}");
        writer.finish();
        flusher.finish();
        server.stop();
    }
}

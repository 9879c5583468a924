//! Payloads at and beyond the limit of 32 MiB, and lengths without payload far beyond it
//! (section 5, S-CMD-READ-04, S-ERR-03).

use nbd_interop::{MIB, assert_serves, in_each_mode};
use nbd_testkit::raw::{Cmd, Errno, Mode, RawClient, Request, cmd_flag, flag};
use nbd_testkit::server::Setup;
use nbd_testkit::{Pattern, assert_same_bytes, assert_zero, matrix};

matrix! {
    tcp_and_unix: [
        the_largest_payload_works_both_ways,
        a_write_beyond_the_largest_payload_closes,
    ],
    unix: [
        a_read_beyond_the_largest_payload_is_eoverflow,
        a_read_of_the_greatest_length_is_refused,
        the_largest_payload_past_the_end_is_refused_in_sync,
        no_alignment_is_required,
        zeroing_and_trimming_have_no_limit,
        sizes_that_are_no_multiple_of_a_sector_are_served_whole,
        a_tebibyte_is_addressable,
    ],
}

const MAX: u64 = 32 * MIB;

/// S-SZ-06, S-SZ-09, S-SZ-14, S-REP-STRUCT-13.
fn the_largest_payload_works_both_ways(setup: Setup) {
    let server = setup.serving("memory:33M");
    let data = Pattern(1).bytes(0, MAX as usize);
    in_each_mode(&server, |client| {
        client.call(&Request::write_zeroes(0, 33 * MIB)).ok();
        client.write(12_345, &data);
        assert_same_bytes(&client.read(12_345, MAX), &data, "32 MiB");
    });
}

/// S-CMD-READ-04, S-ERR-03: refused, in sync, in every mode.
fn a_read_beyond_the_largest_payload_is_eoverflow(setup: Setup) {
    let server = setup.serving("memory:10G");
    in_each_mode(&server, |client| {
        for length in [MAX + 1, MAX + 4096, 64 * MIB, 0xffff_f000] {
            client.call(&Request::read(0, length)).expect_error(Errno::EOVERFLOW);
            if client.has_flag(flag::SEND_DF) {
                let whole = Request::read(4096, length).flags(cmd_flag::DF);
                client.call(&whole).expect_error(Errno::EOVERFLOW);
            }
        }
        client.read(0, 512);
    });
}

/// S-SZ-12, S-ROB-04: too long and beyond the end at once: either refusal is right, success is not.
fn a_read_of_the_greatest_length_is_refused(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for offset in [0, MIB, 1 << 62] {
            let error = client.call(&Request::read(offset, 0xffff_ffff)).error();
            assert!(matches!(error, Some(Errno::EINVAL | Errno::EOVERFLOW)), "{error:?}");
        }
        client.read(0, 512);
    });
}

/// S-SZ-10, S-ROB-04, S-EH-04: the payload is never waited for. Under extended headers a reply may come first.
fn a_write_beyond_the_largest_payload_closes(setup: Setup) {
    let server = setup.serving("memory:10G");
    for mode in nbd_interop::MODES {
        for length in [MAX + 1, 0xffff_fff0] {
            let mut client = RawClient::go_in(mode, server.endpoint());
            let mut write = Request::new(Cmd::WRITE, 0, length);
            if mode == Mode::Extended {
                write = write.flags(cmd_flag::PAYLOAD_LEN);
            }
            client.send(&write);
            if mode == Mode::Extended {
                client.wire().drain_to_eof();
            } else {
                client.wire().expect_eof();
            }
        }
    }
    assert_serves(&server);
}

/// S-SZ-09, S-REQ-11: 32 MiB that have no place to go are consumed all the same.
fn the_largest_payload_past_the_end_is_refused_in_sync(setup: Setup) {
    let server = setup.serving("memory:1M");
    let data = vec![0xee; MAX as usize];
    in_each_mode(&server, |client| {
        client.call(&Request::write(0, &data)).expect_error(Errno::ENOSPC);
        assert_zero(&client.read(0, MIB), "export");
    });
}

/// S-SZ-06, S-SZ-08, S-SZ-12: byte granularity, on memory and on a file.
fn no_alignment_is_required(setup: Setup) {
    let serve = setup.serve();
    let path = serve.dir().join("image");
    std::fs::write(&path, vec![0; 10_007]).unwrap();
    let file = serve.arg(path.to_str().unwrap()).start();
    for server in [setup.serving("memory:10007"), file] {
        in_each_mode(&server, |client| {
            for at in [1, 511, 513, 4095, 10_000] {
                let data = Pattern(at).bytes(at, 7);
                client.write(at, &data);
                assert_same_bytes(&client.read(at, 7), &data, "seven bytes");
                client.call(&Request::write_zeroes(at + 1, 1)).ok();
                assert_eq!(client.read(at, 3), [data[0], 0, data[2]]);
            }
        });
    }
}

/// S-SZ-11: commands without payload may act on everything at once; the server does not close, and this one
/// has no reason to refuse.
fn zeroing_and_trimming_have_no_limit(setup: Setup) {
    let server = setup.serving("memory:10G");
    in_each_mode(&server, |client| {
        let all = match client.mode() {
            Mode::Extended => 10 << 30,
            _ => u64::from(u32::MAX),
        };
        for command in [Cmd::WRITE_ZEROES, Cmd::TRIM] {
            client.write(all - 5, b"tail.");
            client.call(&Request::new(command, 0, all)).ok();
            assert_zero(&client.read(all - 5, 5), "tail");
        }
        let error = client.call(&Request::cache(0, all)).error();
        assert!(matches!(error, None | Some(Errno::EINVAL | Errno::EOVERFLOW)), "{error:?}");
        if client.mode() != Mode::Simple {
            let status = client.call(&Request::block_status(0, all)).only_status();
            assert!(status.total() > 0);
        }
    });
}

/// S-SZ-05, S-REQ-09: every byte of an odd size can be used.
fn sizes_that_are_no_multiple_of_a_sector_are_served_whole(setup: Setup) {
    for size in [1_u64, 511, 513, 1000, 4097] {
        let server = setup.serving(&format!("memory:{size}"));
        in_each_mode(&server, |client| {
            assert_eq!(client.export().size, size);
            let data = Pattern(size).bytes(0, size as usize);
            client.write(0, &data);
            assert_same_bytes(&client.read(0, size), &data, "whole export");
            client.call(&Request::read(size, 1)).expect_error(Errno::EINVAL);
            client.call(&Request::write(size, b"x")).expect_error(Errno::ENOSPC);
        });
    }
}

/// B-CONV-01: offsets beyond 32 bits are all there.
fn a_tebibyte_is_addressable(setup: Setup) {
    let server = setup.serving("memory:1T");
    let end = 1 << 40;
    in_each_mode(&server, |client| {
        assert_eq!(client.export().size, end);
        for at in [0, (1 << 32) - 2, 1 << 32, 1 << 39, end - 5] {
            let data = Pattern(at).bytes(at, 5);
            client.write(at, &data);
            assert_same_bytes(&client.read(at, 5), &data, "far away");
        }
        assert_zero(&client.read((1 << 32) + 100, 1000), "untouched");
        client.call(&Request::trim(0, 0xffff_ffff)).ok();
    });
}

//! Requests as such: magic, commands, flags, ranges, read-only exports (sections 7, 8 and 13, B-END-01).

use nbd_interop::{MIB, assert_serves, in_each_mode, in_modes};
use nbd_testkit::raw::{Cmd, Errno, Mode, RawClient, Request, cmd_flag, flag, magic};
use nbd_testkit::server::Setup;
use nbd_testkit::{Pattern, assert_same_bytes, assert_zero, matrix};

matrix! {
    tcp_and_unix: [
        wrong_magic_closes_and_is_not_executed,
        write_past_the_end_is_enospc,
    ],
    unix: [
        unknown_commands_are_einval,
        unknown_flags_are_einval,
        known_flags_on_other_commands_are_einval,
        negotiated_flags_without_negotiation_are_einval,
        compact_payload_flag_is_einval,
        fua_is_accepted_on_every_command,
        zero_length_transfers_succeed,
        zero_length_block_status_is_einval,
        other_commands_past_the_end_are_einval,
        ranges_do_not_wrap,
        the_last_byte_is_inside,
        a_failing_write_consumes_its_payload,
        write_type_commands_on_a_read_only_export_are_eperm,
        unadvertised_commands_are_einval,
        stray_fields_of_flush_do_no_harm,
        stray_fields_of_disc_do_no_harm,
        errors_do_not_end_the_session,
        memory_advertises_what_it_can,
        every_advertised_feature_works,
    ],
}

/// Commands other than WRITE and DISC, on a range of 512 bytes where they take one.
fn without_payload() -> Vec<Request> {
    vec![
        Request::read(0, 512),
        Request::flush(),
        Request::trim(0, 512),
        Request::cache(0, 512),
        Request::write_zeroes(0, 512),
        Request::block_status(0, 512),
    ]
}

/// S-REQ-01, S-REQ-02, S-EH-12: no reply, no effect, also for the magics of the past and of other messages.
fn wrong_magic_closes_and_is_not_executed(setup: Setup) {
    let server = setup.serving("memory:1M");
    let wrong = [0, !0, magic::REQUEST ^ 1, magic::SIMPLE_REPLY, magic::HISTORIC_REQUESTS[0]];
    for mode in nbd_interop::MODES {
        let other_mode = match mode {
            Mode::Extended => magic::REQUEST,
            _ => magic::EXTENDED_REQUEST,
        };
        for magic in wrong.into_iter().chain([magic::HISTORIC_REQUESTS[1], other_mode]) {
            let mut client = RawClient::go_in(mode, server.endpoint());
            let write = Request::write(0, b"not to be written").magic(magic);
            let bytes = write.encode(mode, 1);
            // The server may have closed before all of it was sent.
            let _ = client.wire().try_send(&bytes);
            client.wire().expect_eof();
        }
    }
    let mut client = RawClient::go_simple(server.endpoint());
    assert_zero(&client.read(0, 100), "export");
    client.finish();
}

/// S-REQ-03, S-ERR-06.
fn unknown_commands_are_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for command in [9, 100, 0x8000, 0xffff] {
            for (offset, length) in [(0, 0), (512, 4096), (u64::MAX, 0xffff_ffff)] {
                let request = Request::new(Cmd(command), offset, length);
                client.call(&request).expect_error(Errno::EINVAL);
            }
        }
        client.read(0, 512);
    });
}

/// S-REQ-04, S-REQ-11, S-CMD-CACHE-02, S-ERR-06: each bit that no command has, the WRITE's payload consumed.
fn unknown_flags_are_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for bit in 6..16 {
            for request in without_payload() {
                client.call(&request.flags(1 << bit)).expect_error(Errno::EINVAL);
            }
            let write = Request::write(0, &[0xee; 5000]).flags(1 << bit);
            client.call(&write).expect_error(Errno::EINVAL);
        }
        assert_zero(&client.read(0, 5000), "export");
    });
}

/// S-REQ-05: a flag is known for some commands and refused on the others.
fn known_flags_on_other_commands_are_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    let owners = [
        (cmd_flag::NO_HOLE, Cmd::WRITE_ZEROES),
        (cmd_flag::DF, Cmd::READ),
        (cmd_flag::REQ_ONE, Cmd::BLOCK_STATUS),
        (cmd_flag::FAST_ZERO, Cmd::WRITE_ZEROES),
    ];
    in_each_mode(&server, |client| {
        for (flag, owner) in owners {
            let mut requests = without_payload();
            requests.push(Request::write(0, &[0xee; 512]));
            for request in requests.into_iter().filter(|request| request.command != owner) {
                eprintln!("{:?} with {flag:#x}", request.command);
                client.call(&request.flags(flag)).expect_error(Errno::EINVAL);
            }
        }
        assert_zero(&client.read(0, 512), "export");
    });
}

/// S-REQ-13, S-CMD-WZ-05: DF without structured replies, `FAST_ZERO` where it is not offered.
fn negotiated_flags_without_negotiation_are_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&[Mode::Simple], &server, |client| {
        client.call(&Request::read(0, 512).flags(cmd_flag::DF)).expect_error(Errno::EINVAL);
        client.call(&Request::read(0, 512)).ok();
    });
    in_each_mode(&server, |client| {
        if !client.has_flag(flag::SEND_FAST_ZERO) {
            let fast = Request::write_zeroes(0, 512).flags(cmd_flag::FAST_ZERO);
            client.call(&fast).expect_error(Errno::EINVAL);
        }
    });
}

/// S-EH-13: `PAYLOAD_LEN` means nothing in compact form: only WRITE carries data, and it is consumed.
fn compact_payload_flag_is_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&[Mode::Simple, Mode::Structured], &server, |client| {
        for request in without_payload() {
            client.call(&request.flags(cmd_flag::PAYLOAD_LEN)).expect_error(Errno::EINVAL);
        }
        let write = Request::write(0, &[0xee; 512]).flags(cmd_flag::PAYLOAD_LEN);
        client.call(&write).expect_error(Errno::EINVAL);
        assert_zero(&client.read(0, 512), "export");
    });
}

/// S-REQ-06.
fn fua_is_accepted_on_every_command(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        assert!(client.has_flag(flag::SEND_FUA));
        let mut requests = without_payload();
        requests.push(Request::write(0, &[0xee; 512]));
        requests.retain(|request| match request.command {
            Cmd::BLOCK_STATUS => client.mode() != Mode::Simple,
            Cmd::CACHE => client.has_flag(flag::SEND_CACHE),
            _ => true,
        });
        for request in requests {
            client.call(&request.flags(cmd_flag::FUA)).ok();
        }
    });
}

/// S-REQ-08: nothing is read, written or closed.
fn zero_length_transfers_succeed(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        let mut requests = vec![
            Request::read(512, 0),
            Request::write(512, b""),
            Request::trim(512, 0),
            Request::write_zeroes(512, 0),
        ];
        if client.has_flag(flag::SEND_CACHE) {
            requests.push(Request::cache(512, 0));
        }
        for request in requests {
            eprintln!("{:?}", request.command);
            client.call(&request).ok();
        }
        client.read(0, 512);
    });
}

/// S-REQ-08: there is no extent of length zero to answer with.
fn zero_length_block_status_is_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&[Mode::Structured, Mode::Extended], &server, |client| {
        client.call(&Request::block_status(512, 0)).expect_error(Errno::EINVAL);
        client.call(&Request::block_status(512, 512)).ok();
    });
}

/// Offsets and lengths that leave an export of 1 MiB.
const OUTSIDE: [(u64, u64); 6] = [
    (MIB, 1),
    (MIB - 511, 512),
    (MIB - 1, 2),
    (0, MIB + 1),
    (1 << 40, 4096),
    (u64::MAX - 4096, 4096),
];

/// S-REQ-09, S-REQ-11, S-SZ-12, S-CMD-WRITE-02: and nothing of it is written.
fn write_past_the_end_is_enospc(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for (offset, length) in OUTSIDE {
            let write = Request::write(offset, &vec![0xee; length as usize]);
            client.call(&write).expect_error(Errno::ENOSPC);
            let zeroes = Request::write_zeroes(offset, length);
            client.call(&zeroes).expect_error(Errno::ENOSPC);
        }
        assert_zero(&client.read(0, MIB), "export");
    });
}

/// S-REQ-09, S-SZ-12, S-CMD-BS-09, S-EH-14.
fn other_commands_past_the_end_are_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for (offset, length) in OUTSIDE {
            for command in [Cmd::READ, Cmd::TRIM, Cmd::CACHE, Cmd::BLOCK_STATUS] {
                eprintln!("{command:?} {offset}+{length}");
                let request = Request::new(command, offset, length);
                client.call(&request).expect_error(Errno::EINVAL);
            }
        }
        client.read(0, 512);
    });
}

/// S-REQ-10: the sum is out of range, not small.
fn ranges_do_not_wrap(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for (offset, length) in [(u64::MAX, 2), (u64::MAX - 511, 1024), (1 << 63, 1 << 20)] {
            client.call(&Request::read(offset, length)).expect_error(Errno::EINVAL);
            client.call(&Request::trim(offset, length)).expect_error(Errno::EINVAL);
            client.call(&Request::write_zeroes(offset, length)).expect_error(Errno::ENOSPC);
            let write = Request::write(offset, &vec![0xee; length as usize]);
            client.call(&write).expect_error(Errno::ENOSPC);
        }
        assert_zero(&client.read(0, MIB), "export");
    });
}

/// S-REQ-09, the other side: requests that end exactly at the end are fine.
fn the_last_byte_is_inside(setup: Setup) {
    let server = setup.serving("memory:1000003");
    in_each_mode(&server, |client| {
        let size = client.export().size;
        assert_eq!(size, 1_000_003);
        client.write(size - 3, b"end");
        assert_eq!(client.read(size - 3, 3), b"end");
        client.call(&Request::write_zeroes(size - 1, 1)).ok();
        assert_eq!(client.read(size - 3, 3), b"en\0");
        client.call(&Request::trim(0, size)).ok();
        client.call(&Request::read(size - 3, 4)).expect_error(Errno::EINVAL);
    });
}

/// S-REQ-11: whatever a WRITE fails of, the next request is found where it begins.
fn a_failing_write_consumes_its_payload(setup: Setup) {
    let server = setup.serving("memory:1M");
    // A payload of requests: if it is not consumed, they are executed.
    in_each_mode(&server, |client| {
        let trap = Request::write(0, &[0xee; 100]).encode(client.mode(), 0xbad);
        let payload = trap.repeat(300);
        let failing = [
            Request::write(MIB, &payload),
            Request::write(u64::MAX, &payload),
            Request::write(0, &payload).flags(1 << 15),
            Request::write(0, &payload).flags(cmd_flag::REQ_ONE),
        ];
        for write in &failing {
            assert!(client.call(write).error().is_some());
        }
        let mut burst = failing.to_vec();
        burst.push(Request::read(0, 512));
        client.send_all(&burst);
        assert_eq!(client.drain().len(), 5);
        assert_zero(&client.read(0, 512), "export");
    });
}

/// S-REQ-12, S-XF-05: refused with EPERM, without effect; reading works.
fn write_type_commands_on_a_read_only_export_are_eperm(setup: Setup) {
    let serve = setup.serve();
    let path = serve.dir().join("image");
    let content = Pattern(3).bytes(0, 65536);
    std::fs::write(&path, &content).unwrap();
    let server = serve.arg("--read-only").arg(path.to_str().unwrap()).start();
    in_each_mode(&server, |client| {
        assert!(client.has_flag(flag::READ_ONLY));
        for fua in [0, cmd_flag::FUA] {
            let requests = [
                Request::write(0, &[0xee; 5000]),
                Request::trim(0, 4096),
                Request::write_zeroes(0, 4096),
            ];
            for request in requests {
                client.call(&request.flags(fua)).expect_error(Errno::EPERM);
            }
        }
        assert_same_bytes(&client.read(0, 65536), &content, "export");
        if client.has_flag(flag::SEND_FLUSH) {
            client.call(&Request::flush()).ok();
        }
    });
    assert_same_bytes(&std::fs::read(&path).unwrap(), &content, "file");
}

/// S-REQ-14, S-CMD-BS-08: answered, not closed.
fn unadvertised_commands_are_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&[Mode::Simple], &server, |client| {
        client.call(&Request::block_status(0, 512)).expect_error(Errno::EINVAL);
        let gates = [
            (flag::SEND_FLUSH, Request::flush()),
            (flag::SEND_TRIM, Request::trim(0, 512)),
            (flag::SEND_WRITE_ZEROES, Request::write_zeroes(0, 512)),
            (flag::SEND_CACHE, Request::cache(0, 512)),
        ];
        for (flag, request) in gates {
            if !client.has_flag(flag) {
                client.call(&request).expect_error(Errno::EINVAL);
            }
        }
    });
}

/// S-REQ-16: the client's fault, answered in sync.
fn stray_fields_of_flush_do_no_harm(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for (offset, length) in [(0, 512), (512, 0), (1 << 50, 1 << 30), (u64::MAX, 0xffff_ffff)] {
            let error = client.call(&Request::new(Cmd::FLUSH, offset, length)).error();
            assert!(matches!(error, None | Some(Errno::EINVAL)), "{error:?}");
        }
        client.read(0, 512);
    });
}

/// S-REQ-16: DISC ends the session whatever is in its fields.
fn stray_fields_of_disc_do_no_harm(setup: Setup) {
    let server = setup.serving("memory:1M");
    for mode in nbd_interop::MODES {
        let mut client = RawClient::go_in(mode, server.endpoint());
        let disc = Request::new(Cmd::DISC, 1 << 40, 0xffff_ffff);
        client.send(&disc.cookie(77));
        client.wire().expect_eof();
    }
    assert_serves(&server);
}

/// B-END-01, S-ERR-01: hundreds of refusals, and the session goes on.
fn errors_do_not_end_the_session(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for _ in 0..200 {
            client.call(&Request::new(Cmd(99), 0, 0)).expect_error(Errno::EINVAL);
            client.call(&Request::write(MIB, b"x")).expect_error(Errno::ENOSPC);
        }
        client.read(0, 512);
    });
}

/// B-BASE-01, B-BASE-02, S-XF-01, S-XF-08: an export in memory has no reason to lack any of these.
fn memory_advertises_what_it_can(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        let expected = flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES
            | flag::SEND_CACHE
            | flag::CAN_MULTI_CONN;
        let flags = client.export().flags;
        assert_eq!(flags & expected, expected, "{flags:#06x}");
        assert_eq!(flags & (flag::READ_ONLY | flag::ROTATIONAL), 0, "{flags:#06x}");
    });
}

/// S-XF-02, S-XF-03, S-XF-04, S-XF-08: what is advertised is not refused.
fn every_advertised_feature_works(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        let zeroes = || Request::write_zeroes(0, 4096);
        let features = [
            (flag::SEND_FLUSH, Request::flush()),
            (flag::SEND_FUA, Request::write(0, b"x").flags(cmd_flag::FUA)),
            (flag::SEND_TRIM, Request::trim(0, 4096)),
            (flag::SEND_WRITE_ZEROES, zeroes()),
            (flag::SEND_WRITE_ZEROES, zeroes().flags(cmd_flag::NO_HOLE)),
            (flag::SEND_DF, Request::read(0, 4096).flags(cmd_flag::DF)),
            (flag::SEND_CACHE, Request::cache(0, 4096)),
        ];
        for (flag, request) in features {
            if client.has_flag(flag) {
                eprintln!("{:?}", request.command);
                client.call(&request).ok();
            }
        }
        if client.has_flag(flag::SEND_FAST_ZERO) {
            let error = client.call(&zeroes().flags(cmd_flag::FAST_ZERO)).error();
            assert!(matches!(error, None | Some(Errno::ENOTSUP)), "{error:?}");
        }
    });
}

//! Extended headers in transmission (section 14). That every reply is an extended chunk which repeats the
//! request's offset (S-EH-01, S-EH-02) and keeps the rules of structured ones (S-EH-15) is checked by the client.

use nbd_interop::{MIB, assert_serves, in_modes};
use nbd_testkit::raw::{Cmd, Errno, Mode, RawClient, Request, cmd_flag, flag};
use nbd_testkit::server::Setup;
use nbd_testkit::{Pattern, assert_same_bytes, assert_zero, matrix};

matrix! {
    tcp_and_unix: [
        every_command_is_answered_by_extended_chunks,
        payloads_beyond_the_maximum_close,
    ],
    unix: [
        lengths_of_64_bits_are_not_truncated,
        ranges_beyond_4_gib_are_zeroed_and_trimmed_whole,
        out_of_range_is_refused_beyond_4_gib,
        payload_of_other_commands_is_consumed_and_refused,
        the_largest_stray_payload_is_consumed,
        write_without_payload_flag_carries_its_payload_all_the_same,
        block_status_answers_64_bit_extents,
        block_status_payload_is_offered_with_contexts_only,
        block_status_payload_selects_contexts,
        faulty_block_status_payloads_are_einval,
        fragmented_headers_are_put_together,
    ],
}

const EXTENDED: [Mode; 1] = [Mode::Extended];

/// S-EH-01, S-EH-02, S-EH-15: all commands, known or not, good or bad, with telling offsets.
fn every_command_is_answered_by_extended_chunks(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&EXTENDED, &server, |client| {
        let commands = [0, 3, 4, 5, 6, 7, 9, 100, 0xffff].map(Cmd);
        for command in commands {
            for offset in [0, 512, 0x0102_0304_0506_0708, u64::MAX] {
                client.call(&Request::new(command, offset, 512));
            }
        }
        client.call(&Request::write(512, b"data")).ok();
        client.call(&Request::write(0x0102_0304_0506_0708, b"data")).expect_error(Errno::ENOSPC);
        assert_eq!(client.read(512, 4), b"data");
    });
}

/// S-EH-03: a length of 2^32 + n is refused or obeyed, never taken for n.
fn lengths_of_64_bits_are_not_truncated(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&EXTENDED, &server, |client| {
        let data = Pattern(1).bytes(0, 4096);
        client.write(0, &data);
        for high in [1 << 32, 1 << 40, 1 << 63] {
            let length = high + 512;
            let read = client.call(&Request::read(0, length)).error();
            assert!(matches!(read, Some(Errno::EINVAL | Errno::EOVERFLOW)), "{read:?}");
            client.call(&Request::write_zeroes(0, length)).expect_error(Errno::ENOSPC);
            client.call(&Request::trim(0, length)).expect_error(Errno::EINVAL);
            client.call(&Request::cache(0, length)).expect_error(Errno::EINVAL);
            client.call(&Request::block_status(0, length)).expect_error(Errno::EINVAL);
        }
        assert_same_bytes(&client.read(0, 4096), &data, "untouched");
    });
}

/// S-EH-03, S-CMD-READ-04: inside the export such a length is meant.
fn ranges_beyond_4_gib_are_zeroed_and_trimmed_whole(setup: Setup) {
    let server = setup.serving("memory:10G");
    in_modes(&EXTENDED, &server, |client| {
        let places = [0, 511, 512, 1 << 32, (1 << 32) + 511, 9 << 30];
        for command in [Cmd::WRITE_ZEROES, Cmd::TRIM] {
            for at in places {
                client.write(at, b"x");
            }
            client.write((1 << 32) + 512, b"guard");
            client.call(&Request::new(command, 0, (1 << 32) + 512)).ok();
            for at in &places[..5] {
                assert_zero(&client.read(*at, 1), "in the range");
            }
            assert_eq!(client.read((1 << 32) + 512, 5), b"guard");
            assert_eq!(client.read(9 << 30, 1), b"x");
        }
        let long = Request::read(0, (1 << 32) + 512);
        client.call(&long).expect_error(Errno::EOVERFLOW);
    });
}

/// S-EH-14, S-REQ-09, S-REQ-10.
fn out_of_range_is_refused_beyond_4_gib(setup: Setup) {
    let server = setup.serving("memory:5G");
    in_modes(&EXTENDED, &server, |client| {
        let outside = [(0, 1 << 33), (1 << 32, (1 << 30) + 1), (5 << 30, 1), (1, u64::MAX)];
        for (offset, length) in outside {
            client.call(&Request::write_zeroes(offset, length)).expect_error(Errno::ENOSPC);
            client.call(&Request::trim(offset, length)).expect_error(Errno::EINVAL);
            client.call(&Request::block_status(offset, length)).expect_error(Errno::EINVAL);
        }
        client.call(&Request::write_zeroes(1 << 32, 1 << 30)).ok();
    });
}

/// S-EH-04, S-ROB-04: the length of a payload is bounded for every command; an EINVAL reply may come first.
fn payloads_beyond_the_maximum_close(setup: Setup) {
    let server = setup.serving("memory:1M");
    for command in [Cmd::WRITE, Cmd::READ, Cmd::FLUSH, Cmd::BLOCK_STATUS, Cmd(99)] {
        for length in [(32 << 20) + 1, 1 << 32, (1 << 32) + 512, 1 << 40, u64::MAX] {
            let mut client = RawClient::go_extended(server.endpoint());
            client.send(&Request::new(command, 0, length).flags(cmd_flag::PAYLOAD_LEN));
            client.wire().drain_to_eof();
        }
    }
    assert_serves(&server);
}

/// S-EH-05: a payload that the command has no use for is consumed, not executed.
fn payload_of_other_commands_is_consumed_and_refused(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&EXTENDED, &server, |client| {
        let trap = Request::write(0, &[0xee; 100]).encode(Mode::Extended, 0xbad);
        let commands =
            [Cmd::READ, Cmd::FLUSH, Cmd::TRIM, Cmd::CACHE, Cmd::WRITE_ZEROES, Cmd(99), Cmd(0xffff)];
        for payload in [&trap[..], &trap.repeat(1000)] {
            for command in commands {
                let request =
                    Request::new(command, 0, 0).payload(payload).flags(cmd_flag::PAYLOAD_LEN);
                client.call(&request).expect_error(Errno::EINVAL);
            }
        }
        assert_zero(&client.read(0, 4096), "export");
    });
}

/// S-EH-05, S-SZ-09: 32 MiB of it.
fn the_largest_stray_payload_is_consumed(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&EXTENDED, &server, |client| {
        let flush = Request::flush().payload(&vec![0xee; 32 << 20]).flags(cmd_flag::PAYLOAD_LEN);
        client.call(&flush).expect_error(Errno::EINVAL);
        client.read(0, 512);
    });
}

/// S-EH-06 would have such a WRITE refused. But qemu 10 sends its payload without saying so by the flag; to refuse it
/// is to lose the stream, and with it the most used client. So it is taken for what is meant; bounds are kept.
fn write_without_payload_flag_carries_its_payload_all_the_same(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&EXTENDED, &server, |client| {
        let data = Pattern(1).bytes(0, 5000);
        client.call(&Request::write(1001, &data).unflagged()).ok();
        assert_same_bytes(&client.read(1001, 5000), &data, "written");
        client.call(&Request::write(MIB, &data).unflagged()).expect_error(Errno::ENOSPC);
        let fua = Request::write(0, &data).flags(cmd_flag::FUA).unflagged();
        client.call(&fua).ok();
        client
            .call(&Request::write(0, &data).flags(1 << 15).unflagged())
            .expect_error(Errno::EINVAL);
        assert_same_bytes(&client.read(0, 5000), &data, "written with FUA");
    });
    let mut client = RawClient::go_extended(server.endpoint());
    client.send(&Request::new(Cmd::WRITE, 0, (32 << 20) + 1));
    client.wire().drain_to_eof();
    assert_serves(&server);
}

/// S-EH-07, S-EH-08, S-EH-09: one extent may be longer than 32 bits can say.
fn block_status_answers_64_bit_extents(setup: Setup) {
    let server = setup.serving("memory:1T");
    in_modes(&EXTENDED, &server, |client| {
        let status = client.call(&Request::block_status(0, 1 << 40)).only_status();
        assert_eq!(status.total(), 1 << 40, "{status:?}");
        client.write(1 << 39, &[7; 65_536]);
        let one = Request::block_status(0, 1 << 40).flags(cmd_flag::REQ_ONE);
        let status = client.call(&one).only_status();
        assert!(status.total() > 1 << 38 && status.total() <= 1 << 39, "{status:?}");
    });
}

/// S-XF-07: not without extended headers (the client checks), and not without a selected context.
fn block_status_payload_is_offered_with_contexts_only(setup: Setup) {
    let server = setup.serving("memory:1M");
    let mut client = RawClient::negotiate(server.endpoint());
    client.extended_headers().unwrap();
    client.go("", &[]).unwrap();
    assert!(!client.has_flag(flag::BLOCK_STATUS_PAYLOAD));
    client.finish();
}

/// S-EH-10, S-EH-11: the length comes from the payload, the answer from the contexts listed there; where the
/// form is not offered, it is refused in sync.
fn block_status_payload_selects_contexts(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&EXTENDED, &server, |client| {
        let id = client.contexts()[0].id;
        let reply = client.call(&Request::block_status_of(4096, 8192, &[id]));
        if client.has_flag(flag::BLOCK_STATUS_PAYLOAD) {
            let status = reply.only_status();
            assert_eq!(status.context, id);
            let one = Request::block_status_of(0, 4096, &[id]).flags(cmd_flag::REQ_ONE);
            assert!(client.call(&one).only_status().total() <= 4096);
        } else {
            reply.expect_error(Errno::EINVAL);
        }
        client.call(&Request::block_status(0, MIB)).ok();
    });
}

/// S-EH-11, S-CMD-BS-09: duplicate and unknown ids, malformed payloads, ranges outside; all in sync.
fn faulty_block_status_payloads_are_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&EXTENDED, &server, |client| {
        let id = client.contexts()[0].id;
        let raw = |payload: &[u8]| {
            let request = Request::new(Cmd::BLOCK_STATUS, 0, 0).payload(payload);
            request.flags(cmd_flag::PAYLOAD_LEN)
        };
        let faulty = [
            Request::block_status_of(0, 4096, &[id, id]),
            Request::block_status_of(0, 4096, &[id.wrapping_add(1)]),
            Request::block_status_of(0, 4096, &[id, id.wrapping_add(1)]),
            Request::block_status_of(0, MIB + 1, &[id]),
            Request::block_status_of(MIB, 1, &[id]),
            Request::block_status_of(0, u64::MAX, &[id]),
            Request::block_status_of(0, 0, &[id]),
            raw(&[0; 1]),
            raw(&[0; 7]),
            raw(&[0, 0, 0, 0, 0, 0, 16, 0, 1]),
            raw(&[0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0]),
            raw(&vec![0; 100_000]),
        ];
        for request in &faulty {
            eprintln!("payload of {} bytes", request.payload.len());
            client.call(request).expect_error(Errno::EINVAL);
        }
        client.call(&Request::block_status(0, MIB)).ok();
        client.read(0, 512);
    });
}

/// S-REQ-15, S-HS-12: 32-byte headers cut anywhere.
fn fragmented_headers_are_put_together(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&EXTENDED, &server, |client| {
        let write = Request::write(7, b"fragmented");
        for cut in [1, 4, 6, 8, 16, 24, 31] {
            let mut bytes = Vec::new();
            let cookie = client.stage(&write, &mut bytes);
            client.wire().send(&bytes[..cut]);
            client.wire().expect_silence();
            client.wire().send(&bytes[cut..]);
            client.reply_to(cookie).ok();
        }
        assert_eq!(client.read(7, 10), b"fragmented");
    });
}

//! What each command does to the export (sections 9 and 10 but for `BLOCK_STATUS`).

use std::path::PathBuf;

use nbd_interop::{MIB, in_each_mode, in_modes};
use nbd_testkit::raw::{Cmd, Errno, Mode, RawClient, Request, STATE_HOLE, cmd_flag, flag};
use nbd_testkit::server::{NbdServe, Setup};
use nbd_testkit::{Pattern, SOON, assert_same_bytes, assert_zero, matrix};

matrix! {
    tcp_and_unix: [
        read_returns_what_was_written,
        disc_completes_what_was_sent_before,
        flushed_writes_are_seen_by_other_connections,
        written_data_survives_a_reconnect,
    ],
    unix: [
        write_changes_its_range_and_nothing_else,
        fresh_memory_reads_as_zero,
        disc_is_not_answered,
        write_zeroes_changes_its_range_and_nothing_else,
        write_zeroes_without_hole_leaves_none,
        write_zeroes_is_never_enotsup_unless_asked_to_be_fast,
        fast_zero_is_done_or_refused_without_effect,
        trim_changes_nothing_outside_its_range,
        trim_of_memory_reads_as_zero,
        cache_changes_nothing,
        file_commands_change_the_file,
        flushed_data_survives_a_killed_server,
        fua_data_survives_a_killed_server,
        a_failing_simple_read_carries_no_data,
    ],
}

/// A server of a file with these contents; gives the file's path, too.
fn serve_file(setup: Setup, content: &[u8]) -> (NbdServe, PathBuf) {
    let serve = setup.serve();
    let path = serve.dir().join("image");
    std::fs::write(&path, content).unwrap();
    (serve.arg(format!("file:{}", path.display())).start(), path)
}

/// Odd offsets and lengths, across sectors, pages and larger units.
const RANGES: [(u64, usize); 8] = [
    (0, 1),
    (1, 511),
    (511, 2),
    (4095, 4098),
    (65535, 3),
    (100_000, 131_072),
    (MIB - 1, 1),
    (300_001, 77_777),
];

/// S-CMD-READ-01, S-ORD-04, S-SZ-06, B-BASE-01.
fn read_returns_what_was_written(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for (offset, length) in RANGES {
            let data = Pattern(offset).bytes(0, length);
            client.write(offset, &data);
            assert_same_bytes(&client.read(offset, length as u64), &data, "read back");
        }
        let whole = Pattern(1).bytes(0, MIB as usize);
        client.write(0, &whole);
        for (offset, length) in RANGES {
            let expected = &whole[offset as usize..offset as usize + length];
            assert_same_bytes(&client.read(offset, length as u64), expected, "part");
        }
    });
}

/// Fills the export, lets `change` act on a range, and gives what is before, in and behind it afterwards;
/// before and behind must not have changed.
#[track_caller]
fn guarded(
    client: &mut RawClient,
    offset: u64,
    length: usize,
    change: impl FnOnce(&mut RawClient),
) -> Vec<u8> {
    let size = client.export().size;
    let before = Pattern(2).bytes(0, size as usize);
    client.write(0, &before);
    change(client);
    let after = client.read(0, size);
    let (start, end) = (offset as usize, offset as usize + length);
    assert_same_bytes(&after[..start], &before[..start], "bytes before the range");
    assert_same_bytes(&after[end..], &before[end..], "bytes behind the range");
    after[start..end].to_vec()
}

/// S-CMD-WRITE-01.
fn write_changes_its_range_and_nothing_else(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for (offset, length) in RANGES {
            let data = Pattern(9).bytes(0, length);
            let found = guarded(client, offset, length, |client| client.write(offset, &data));
            assert_same_bytes(&found, &data, "range");
        }
    });
}

/// S-CMD-READ-01: what was never written.
fn fresh_memory_reads_as_zero(setup: Setup) {
    let server = setup.serving("memory:3000001");
    in_each_mode(&server, |client| {
        assert_zero(&client.read(0, 3_000_001), "export");
        assert_zero(&client.read(2_999_999, 2), "end");
    });
}

/// S-CMD-DISC-01: nothing comes but the end, also when DISC is the first request.
fn disc_is_not_answered(setup: Setup) {
    let server = setup.serving("memory:1M");
    for mode in nbd_interop::MODES {
        let mut client = RawClient::go_in(mode, server.endpoint());
        client.send(&Request::new(Cmd::DISC, 0, 0));
        client.wire().expect_eof();
    }
}

/// S-CMD-DISC-01, S-CMD-DISC-02: requests before DISC are done and answered.
fn disc_completes_what_was_sent_before(setup: Setup) {
    let server = setup.serving("memory:8M");
    let data = Pattern(6).bytes(0, 8 * MIB as usize);
    for mode in nbd_interop::MODES {
        let mut client = RawClient::go_in(mode, server.endpoint());
        client.call(&Request::write_zeroes(0, 8 * MIB)).ok();
        let mut burst: Vec<_> = (0..64)
            .map(|n| n * 131_072)
            .map(|at| Request::write(at, &data[at as usize..at as usize + 131_072]))
            .collect();
        burst.extend((0..16).map(|n| Request::read(n * 4096, 4096)));
        burst.push(Request::new(Cmd::DISC, 0, 0));
        client.send_all(&burst);
        let replies = client.drain();
        assert_eq!(replies.len(), 80);
        assert!(replies.iter().all(|reply| reply.error().is_none()));
        client.wire().expect_eof();
        let mut client = RawClient::go_simple(server.endpoint());
        assert_same_bytes(&client.read(0, 8 * MIB), &data, "export");
        client.finish();
    }
}

/// S-CMD-WZ-01, S-REQ-07: aligned and odd, with and without `NO_HOLE` and FUA.
fn write_zeroes_changes_its_range_and_nothing_else(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for flags in [0, cmd_flag::NO_HOLE, cmd_flag::FUA, cmd_flag::NO_HOLE | cmd_flag::FUA] {
            for (offset, length) in RANGES {
                let zeroes = Request::write_zeroes(offset, length as u64).flags(flags);
                let found = guarded(client, offset, length, |client| {
                    client.call(&zeroes).ok();
                });
                assert_zero(&found, "range");
            }
        }
    });
}

/// S-CMD-WZ-02: where there was data and where there was a hole.
fn write_zeroes_without_hole_leaves_none(setup: Setup) {
    for (server, _path) in [
        (setup.serving("memory:4M"), Default::default()),
        serve_file(setup, &vec![7; 4 * MIB as usize]),
    ] {
        in_modes(&[Mode::Structured, Mode::Extended], &server, |client| {
            client.call(&Request::trim(0, 4 * MIB)).ok();
            client.write(MIB, &vec![7; MIB as usize]);
            let zeroes = Request::write_zeroes(0, 3 * MIB).flags(cmd_flag::NO_HOLE);
            client.call(&zeroes).ok();
            let status = client.call(&Request::block_status(0, 3 * MIB)).only_status();
            let holes = status.placed(0).into_iter().filter(|(_, e)| e.flags & STATE_HOLE != 0);
            let inside: Vec<_> = holes.filter(|(at, _)| *at < 3 * MIB).collect();
            assert_eq!(inside, [], "{status:?}");
            assert_zero(&client.read(0, 3 * MIB), "range");
        });
    }
}

/// S-CMD-WZ-03, S-ERR-04 (the client remarks on ENOTSUP).
fn write_zeroes_is_never_enotsup_unless_asked_to_be_fast(setup: Setup) {
    let (server, _path) = serve_file(setup, &[7; 65536]);
    in_each_mode(&server, |client| {
        for flags in [0, cmd_flag::NO_HOLE, cmd_flag::FUA] {
            for (offset, length) in [(0, 65536), (1, 3), (511, 4097), (4096, 4096)] {
                client.call(&Request::write_zeroes(offset, length).flags(flags)).ok();
            }
        }
    });
}

/// S-CMD-WZ-04, S-CMD-WZ-05: zeroes, or ENOTSUP with everything as it was; not offered: EINVAL.
fn fast_zero_is_done_or_refused_without_effect(setup: Setup) {
    for (server, _path) in [
        (setup.serving("memory:1M"), Default::default()),
        serve_file(setup, &vec![7; MIB as usize]),
    ] {
        in_each_mode(&server, |client| {
            let offered = client.has_flag(flag::SEND_FAST_ZERO);
            for flags in [0, cmd_flag::NO_HOLE] {
                for (offset, length) in RANGES {
                    let mut error = None;
                    let zeroes = Request::write_zeroes(offset, length as u64)
                        .flags(flags | cmd_flag::FAST_ZERO);
                    let found = guarded(client, offset, length, |client| {
                        error = client.call(&zeroes).error();
                    });
                    match error {
                        None => assert_zero(&found, "zeroed range"),
                        Some(refusal) => {
                            let proper = if offered { Errno::ENOTSUP } else { Errno::EINVAL };
                            assert_eq!(refusal, proper);
                            let before = Pattern(2).bytes(offset, length);
                            assert_same_bytes(&found, &before, "range after the refusal");
                        }
                    }
                }
            }
        });
    }
}

/// S-CMD-TRIM-01, S-CMD-TRIM-02: what is inside is undefined; the client only asks that it can be read.
fn trim_changes_nothing_outside_its_range(setup: Setup) {
    for (server, _path) in [
        (setup.serving("memory:1M"), Default::default()),
        serve_file(setup, &vec![7; MIB as usize]),
    ] {
        in_each_mode(&server, |client| {
            for flags in [0, cmd_flag::FUA] {
                for (offset, length) in RANGES {
                    let trim = Request::trim(offset, length as u64).flags(flags);
                    guarded(client, offset, length, |client| {
                        client.call(&trim).ok();
                    });
                }
            }
        });
    }
}

/// S-CMD-TRIM-02: memory that was given back shows no client's old data.
fn trim_of_memory_reads_as_zero(setup: Setup) {
    let server = setup.serving("memory:8M");
    in_each_mode(&server, |client| {
        client.write(0, &vec![7; 8 * MIB as usize]);
        client.call(&Request::trim(0, 8 * MIB)).ok();
        assert_zero(&client.read(0, 8 * MIB), "export");
    });
}

/// S-CMD-CACHE-01.
fn cache_changes_nothing(setup: Setup) {
    for (server, _path) in [
        (setup.serving("memory:1M"), Default::default()),
        serve_file(setup, &vec![7; MIB as usize]),
    ] {
        in_each_mode(&server, |client| {
            let offered = client.has_flag(flag::SEND_CACHE);
            let whole = Pattern(2).bytes(0, MIB as usize);
            let found = guarded(client, 0, MIB as usize, |client| {
                for (offset, length) in RANGES {
                    let error = client.call(&Request::cache(offset, length as u64)).error();
                    assert!(error.is_none() || !offered, "{error:?}");
                }
            });
            assert_same_bytes(&found, &whole, "export");
        });
    }
}

/// S-XF-06: `CAN_MULTI_CONN` is advertised, so FLUSH and FUA order what other connections see.
fn flushed_writes_are_seen_by_other_connections(setup: Setup) {
    let (file, _path) = serve_file(setup, &vec![0; MIB as usize]);
    for server in [setup.serving("memory:1M"), file] {
        let mut writer = RawClient::go_simple(server.endpoint());
        let mut reader = RawClient::go_structured(server.endpoint());
        assert!(writer.has_flag(flag::CAN_MULTI_CONN));
        for round in 0..50 {
            let data = Pattern(round).bytes(0, 5000);
            let at = round * 10_000 + 7;
            if round % 2 == 0 {
                writer.write(at, &data);
                writer.call(&Request::flush()).ok();
            } else {
                writer.call(&Request::write(at, &data).flags(cmd_flag::FUA)).ok();
            }
            assert_same_bytes(&reader.read(at, 5000), &data, "seen by the other");
        }
        writer.finish();
        reader.finish();
    }
}

/// S-ORD-05.
fn written_data_survives_a_reconnect(setup: Setup) {
    let server = setup.serving("memory:1M");
    let data = Pattern(8).bytes(0, 100_000);
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(12_345, &data);
    client.finish();
    let mut client = RawClient::go_extended(server.endpoint());
    assert_same_bytes(&client.read(12_345, 100_000), &data, "after reconnect");
    client.finish();
}

/// S-CMD-WRITE-01, S-CMD-WZ-01, S-CMD-FLUSH-01, S-ORD-05: the file holds what the client wrote.
fn file_commands_change_the_file(setup: Setup) {
    let mut expected = Pattern(1).bytes(0, 1_000_003);
    let (mut server, path) = serve_file(setup, &expected);
    let mut client = RawClient::go_structured(server.endpoint());
    assert_eq!(client.export().size, 1_000_003);
    assert_same_bytes(&client.read(0, 1_000_003), &expected, "export");
    let data = Pattern(2).bytes(0, 70_001);
    client.write(123_457, &data);
    expected[123_457..123_457 + 70_001].copy_from_slice(&data);
    client.call(&Request::write_zeroes(500_001, 100_001)).ok();
    expected[500_001..600_002].fill(0);
    client.write(1_000_002, b"!");
    expected[1_000_002] = b'!';
    client.call(&Request::flush()).ok();
    assert_same_bytes(&std::fs::read(&path).unwrap(), &expected, "file after FLUSH");
    client.finish();
    server.terminate();
    assert!(server.wait_exit(SOON).is_some_and(|status| status.success()));
    assert_same_bytes(&std::fs::read(&path).unwrap(), &expected, "file after the server's end");
}

/// Writes with `flags`, flushes if that is asked for, kills the server, and looks at the file.
fn killed_after(setup: Setup, flags: u16, flush: bool) {
    let (mut server, path) = serve_file(setup, &vec![0; MIB as usize]);
    let data = Pattern(3).bytes(0, 300_000);
    let mut client = RawClient::go_simple(server.endpoint());
    client.call(&Request::write(1001, &data).flags(flags)).ok();
    client.call(&Request::write_zeroes(2000, 1000).flags(flags)).ok();
    if flush {
        client.call(&Request::flush()).ok();
    }
    server.kill();
    server.wait_exit(SOON).expect("SIGKILL ends it");
    let file = std::fs::read(&path).unwrap();
    assert_same_bytes(&file[1001..2000], &data[..999], "before the zeroes");
    assert_zero(&file[2000..3000], "zeroes");
    assert_same_bytes(&file[3000..301_001], &data[1999..], "after the zeroes");
}

/// S-ORD-01, as far as a killed process shows it: nothing is left in the server's own memory.
fn flushed_data_survives_a_killed_server(setup: Setup) {
    killed_after(setup, 0, true);
}

/// S-ORD-02, likewise.
fn fua_data_survives_a_killed_server(setup: Setup) {
    killed_after(setup, cmd_flag::FUA, false);
}

/// S-CMD-READ-02: a failing simple READ is a bare header; the next reply follows at once.
fn a_failing_simple_read_carries_no_data(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&[Mode::Simple], &server, |client| {
        client.send_all(&[Request::read(MIB, 4096), Request::read(0, 10)]);
        let replies = client.drain();
        assert_eq!(replies.iter().filter(|reply| reply.error().is_some()).count(), 1);
        client.wire().expect_silence();
    });
}

//! `BLOCK_STATUS` and `base:allocation` (section 6, S-CMD-BS-*). The form of every answer is checked by the client:
//! ids, lengths, sums, `REQ_ONE`, the end of the export.

use std::os::unix::fs::FileExt;

use nbd_interop::{MIB, in_modes};
use nbd_testkit::raw::{Errno, Mode, RawClient, Request, STATE_HOLE, STATE_ZERO, Status, cmd_flag};
use nbd_testkit::server::{NbdServe, Setup};
use nbd_testkit::{Pattern, assert_zero, matrix};

matrix! {
    tcp_and_unix: [
        extents_distinguish_data_from_holes_in_memory,
    ],
    unix: [
        fresh_memory_is_one_hole,
        extents_distinguish_data_from_holes_in_a_file,
        what_is_reported_as_zero_reads_as_zero,
        req_one_gives_one_extent,
        unaligned_queries_are_answered,
        queries_make_progress_to_the_end,
        many_extents_are_reported_or_cut_short,
        out_of_range_is_einval,
        without_a_selected_context_it_is_einval,
        the_answer_is_made_of_chunks,
        trimmed_memory_becomes_a_hole,
    ],
}

const STRUCTURED: [Mode; 2] = [Mode::Structured, Mode::Extended];

/// Asks until `offset..end` is covered, as a client must that got a short answer; gives offset, length and
/// flags of each extent, neighbours of equal flags joined.
#[track_caller]
fn walk(client: &mut RawClient, mut offset: u64, end: u64) -> Vec<(u64, u64, u64)> {
    let mut extents: Vec<(u64, u64, u64)> = Vec::new();
    let mut rounds = 0;
    while offset < end {
        let request = Request::block_status(offset, (end - offset).min(0xffff_ffff));
        let status = client.call(&request).only_status();
        for (at, extent) in status.placed(offset) {
            match extents.last_mut() {
                Some(last) if last.2 == extent.flags => last.1 += extent.length,
                _ => extents.push((at, extent.length, extent.flags)),
            }
        }
        offset += status.total();
        rounds += 1;
        assert!(rounds < 10_000, "no end of extents");
    }
    extents
}

/// Whether `flags` say that there is no data.
fn hollow(flags: u64) -> bool {
    flags & STATE_ZERO != 0
}

/// S-META-03: nothing was written, so there is nothing.
fn fresh_memory_is_one_hole(setup: Setup) {
    let server = setup.serving("memory:1G");
    in_modes(&STRUCTURED, &server, |client| {
        let extents = walk(client, 0, 1 << 30);
        assert_eq!(extents, [(0, 1 << 30, STATE_HOLE | STATE_ZERO)]);
    });
}

/// The extents of an export of 4 MiB whose second MiB is data.
#[track_caller]
fn assert_second_mib_is_data(client: &mut RawClient) {
    let extents = walk(client, 0, 4 * MIB);
    let shape: Vec<_> = extents.iter().map(|&(at, len, flags)| (at, len, hollow(flags))).collect();
    assert_eq!(shape, [(0, MIB, true), (MIB, MIB, false), (2 * MIB, 2 * MIB, true)]);
    assert_eq!(extents[1].2 & STATE_HOLE, 0, "data is allocated");
}

/// S-CMD-BS-01, S-CMD-BS-11, S-META-03.
fn extents_distinguish_data_from_holes_in_memory(setup: Setup) {
    let server = setup.serving("memory:4M");
    let mut writer = RawClient::go_simple(server.endpoint());
    writer.write(MIB, &Pattern(1).bytes(0, MIB as usize));
    writer.finish();
    in_modes(&STRUCTURED, &server, assert_second_mib_is_data);
}

/// A server of a sparse file of 4 MiB with data in the second.
fn sparse_file(setup: Setup) -> NbdServe {
    let serve = setup.serve();
    let path = serve.dir().join("image");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(4 * MIB).unwrap();
    file.write_all_at(&Pattern(1).bytes(0, MIB as usize), MIB).unwrap();
    serve.arg(path.to_str().unwrap()).start()
}

/// S-CMD-BS-01, S-META-03: what the file system knows of the file's holes.
fn extents_distinguish_data_from_holes_in_a_file(setup: Setup) {
    let server = sparse_file(setup);
    in_modes(&STRUCTURED, &server, assert_second_mib_is_data);
}

/// S-META-03, S-META-04: after writes, zeroing and trimming of all kinds, on memory and on a file.
fn what_is_reported_as_zero_reads_as_zero(setup: Setup) {
    for server in [setup.serving("memory:4M"), sparse_file(setup)] {
        in_modes(&STRUCTURED, &server, |client| {
            client.write(12_345, &[7; 54_321]);
            client.call(&Request::write_zeroes(MIB + 7, 300_000)).ok();
            let no_hole = cmd_flag::NO_HOLE;
            client.call(&Request::write_zeroes(2 * MIB, 70_000).flags(no_hole)).ok();
            client.call(&Request::trim(MIB + 400_001, 200_000)).ok();
            client.write(3 * MIB, &vec![0; 100_000]);
            let mut zero = 0;
            for (at, length, flags) in walk(client, 0, 4 * MIB) {
                if flags & STATE_ZERO != 0 {
                    assert_zero(&client.read(at, length), "an extent with STATE_ZERO");
                    zero += length;
                }
            }
            assert!(zero > MIB, "{zero}");
        });
    }
}

/// S-CMD-BS-03 (the client counts and measures).
fn req_one_gives_one_extent(setup: Setup) {
    let server = sparse_file(setup);
    in_modes(&STRUCTURED, &server, |client| {
        for (offset, length) in [(0, 1), (0, 4 * MIB), (MIB, MIB), (MIB - 1, 2), (4 * MIB - 1, 1)] {
            let request = Request::block_status(offset, length).flags(cmd_flag::REQ_ONE);
            client.call(&request).only_status();
        }
    });
}

/// S-CMD-BS-02, S-CMD-BS-04, S-CMD-BS-05, S-REQ-08: any offset and length but zero.
fn unaligned_queries_are_answered(setup: Setup) {
    for server in [setup.serving("memory:1000003"), sparse_file(setup)] {
        in_modes(&STRUCTURED, &server, |client| {
            let size = client.export().size;
            client.write(70_000, &[7; 5]);
            for offset in [0, 1, 511, 513, 69_999, 70_001, 70_004, 70_005, size - 1] {
                for length in [1, 2, 511, 4097, size - offset] {
                    let length = length.min(size - offset);
                    client.call(&Request::block_status(offset, length)).only_status();
                }
            }
            let inside = client.call(&Request::block_status(70_002, 1)).only_status();
            assert!(!hollow(inside.extents[0].flags), "{inside:?}");
        });
    }
}

/// S-CMD-BS-02, S-CMD-BS-05: an export whose size is no multiple of anything is covered up to its last byte.
fn queries_make_progress_to_the_end(setup: Setup) {
    let server = setup.serving("memory:1000003");
    in_modes(&STRUCTURED, &server, |client| {
        client.write(1_000_002, b"x");
        let extents = walk(client, 0, 1_000_003);
        let last = extents.last().unwrap();
        assert_eq!(last.0 + last.1, 1_000_003);
        assert!(!hollow(last.2), "{extents:?}");
    });
}

/// S-CMD-BS-06, S-CMD-BS-07: an export as fragmented as memory can be.
fn many_extents_are_reported_or_cut_short(setup: Setup) {
    let server = setup.serving("memory:256M");
    let mut writer = RawClient::go_simple(server.endpoint());
    let writes: Vec<_> =
        (0..512).map(|n| Request::write(n * (MIB / 2) + 100_000, b"data")).collect();
    writer.send_all(&writes);
    assert_eq!(writer.drain().len(), 512);
    writer.finish();
    in_modes(&STRUCTURED, &server, |client| {
        let extents = walk(client, 0, 256 * MIB);
        let data = extents.iter().filter(|extent| !hollow(extent.2)).count();
        assert_eq!(data, 512);
        for (at, length, _) in extents.iter().filter(|extent| !hollow(extent.2)) {
            let written = at - at % (MIB / 2) + 100_000;
            assert!((*at..at + length).contains(&written), "{written} in {at}+{length}");
        }
    });
}

/// S-CMD-BS-09, S-EH-14.
fn out_of_range_is_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&STRUCTURED, &server, |client| {
        for (offset, length) in
            [(MIB, 1), (0, MIB + 1), (MIB - 1, 2), (u64::MAX, 1), (1 << 63, 512)]
        {
            let request = Request::block_status(offset, length);
            client.call(&request).expect_error(Errno::EINVAL);
        }
        client.call(&Request::block_status(0, MIB)).ok();
    });
}

/// S-CMD-BS-08: with structured replies or extended headers, but no SET.
fn without_a_selected_context_it_is_einval(setup: Setup) {
    let server = setup.serving("memory:1M");
    for extended in [false, true] {
        let mut client = RawClient::negotiate(server.endpoint());
        match extended {
            false => client.structured_reply().unwrap(),
            true => client.extended_headers().unwrap(),
        }
        client.go("", &[]).unwrap();
        client.call(&Request::block_status(0, 512)).expect_error(Errno::EINVAL);
        client.read(0, 512);
        client.finish();
    }
}

/// S-CMD-BS-10, S-EH-07: never a simple reply (the client tells the chunk types apart).
fn the_answer_is_made_of_chunks(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&STRUCTURED, &server, |client| {
        let reply = client.call(&Request::block_status(0, MIB)).ok();
        assert!(!reply.simple);
        let Status { context, .. } = reply.only_status();
        assert_eq!(context, client.contexts()[0].id);
    });
}

/// S-META-03, S-XF-02: trimming of memory is advertised since it gives memory back.
fn trimmed_memory_becomes_a_hole(setup: Setup) {
    let server = setup.serving("memory:8M");
    in_modes(&STRUCTURED, &server, |client| {
        client.write(0, &vec![7; 8 * MIB as usize]);
        assert_eq!(walk(client, 0, 8 * MIB), [(0, 8 * MIB, 0)]);
        client.call(&Request::trim(0, 8 * MIB)).ok();
        assert_eq!(walk(client, 0, 8 * MIB), [(0, 8 * MIB, STATE_HOLE | STATE_ZERO)]);
    });
}

//! Hostile, clumsy and vanishing clients (section 17, S-OPT-05, S-OPT-12, S-END-04, S-END-05).

use std::time::Duration;

use nbd_interop::{MIB, MODES, assert_serves, serve_two};
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{
    Cmd, Mode, Opt, RawClient, Request, TIMEOUT, Wire, cmd_flag, handshake, info_data, magic,
    meta_data,
};
use nbd_testkit::server::{NbdServe, Setup};
use nbd_testkit::{Pattern, SOON, assert_same_bytes, matrix};

matrix! {
    tcp_and_unix: [
        garbage_in_any_phase_harms_no_other_client,
        vanishing_in_any_phase_harms_no_other_client,
        descriptors_and_threads_are_released,
        parked_connections_block_no_other_client,
        pipelined_reads_do_not_deadlock,
        a_client_that_never_reads_is_held_back,
        half_closed_clients_get_replies_or_the_end,
        thirty_two_clients_are_served_at_once,
    ],
    unix: [
        huge_announced_lengths_cost_no_memory,
        completed_writes_survive_an_abrupt_close,
        a_write_cut_short_changes_nothing_beyond_what_came,
        clients_on_one_export_do_not_mix,
        max_connections_bounds_and_frees_slots,
        large_payloads_are_given_back,
    ],
}

/// Bytes without meaning, never a valid magic.
fn garbage(seed: u64, length: usize) -> Vec<u8> {
    Pattern(seed).bytes(0, length)
}

/// A connection in each phase: silent, greeted, in the option phase, with half an option, in transmission, with half a
/// request, with half a payload.
fn in_each_phase(server: &NbdServe) -> Vec<RawClient> {
    let mut clients = vec![RawClient::connect(server.endpoint())];
    let mut greeted = RawClient::connect(server.endpoint());
    greeted.read_greeting();
    clients.push(greeted);
    clients.push(RawClient::negotiate(server.endpoint()));
    let go = [&magic::IHAVEOPT.to_be_bytes()[..], &[0, 0, 0, 7, 0, 0, 0, 100], &[0; 50]].concat();
    for cut in [1, 8, 15, 16, 66] {
        let mut negotiating = RawClient::negotiate(server.endpoint());
        negotiating.wire().send(&go[..cut]);
        clients.push(negotiating);
    }
    for mode in MODES {
        clients.push(RawClient::go_in(mode, server.endpoint()));
        let write = Request::write(0, &[0xee; 10_000]).encode(mode, 1);
        for cut in [1, 27, 40, 5000] {
            let mut client = RawClient::go_in(mode, server.endpoint());
            client.wire().send(&write[..cut]);
            clients.push(client);
        }
    }
    clients
}

/// S-ROB-01, B-CONV-01: what cannot be parsed ends that connection and nothing else.
fn garbage_in_any_phase_harms_no_other_client(setup: Setup) {
    let server = serve_two(setup);
    let mut witness = RawClient::go_simple(server.endpoint());
    for seed in 0..8 {
        for mut client in in_each_phase(&server) {
            // The server may close at the first byte.
            let _ = client.wire().try_send(&garbage(seed, 3000));
        }
        let mut client = RawClient::go_extended(server.endpoint());
        let _ = client.wire().try_send(&garbage(seed, 100_000));
        client.wire().drain_to_eof();
        witness.read(0, 4096);
    }
    witness.finish();
    assert_serves(&server);
}

/// S-ROB-01, S-OPT-12, S-END-04: a connection may end anywhere.
fn vanishing_in_any_phase_harms_no_other_client(setup: Setup) {
    let server = serve_two(setup);
    let mut witness = RawClient::go_simple(server.endpoint());
    for _ in 0..5 {
        drop(in_each_phase(&server));
        witness.read(0, 4096);
    }
    witness.finish();
    assert_serves(&server);
}

/// S-ROB-02: hundreds of connections later the server holds what it held at first.
fn descriptors_and_threads_are_released(setup: Setup) {
    let server = serve_two(setup);
    // The first connections may start what stays for good, such as a pool of threads.
    drop(in_each_phase(&server));
    assert_serves(&server);
    let settled = |files: usize, threads: u64| {
        wait_until("descriptors and threads are released", SOON, || {
            server.open_files() <= files && server.threads() <= threads
        });
    };
    wait_until("connections are gone", SOON, || server.open_files() < 20);
    let (files, threads) = (server.open_files(), server.threads());
    for _ in 0..20 {
        drop(in_each_phase(&server));
        assert_serves(&server);
    }
    settled(files, threads.max(16));
}

/// S-ROB-03: however many wait in whatever state, the next one is served.
fn parked_connections_block_no_other_client(setup: Setup) {
    let server = serve_two(setup);
    let mut parked = in_each_phase(&server);
    let mut client = RawClient::go_structured(server.endpoint());
    for round in 0..100 {
        let data = Pattern(round).bytes(0, 10_000);
        client.write(round * 1000, &data);
        assert_same_bytes(&client.read(round * 1000, 10_000), &data, "beside parked ones");
    }
    client.finish();
    // Those that were parked between two messages go on where they were.
    let mut negotiating = parked.swap_remove(2);
    negotiating.list().unwrap();
    negotiating.finish();
}

/// S-ROB-04, S-OPT-05, S-SZ-10: lengths are compared with a bound before anything is sized by them.
fn huge_announced_lengths_cost_no_memory(setup: Setup) {
    let server = serve_two(setup);
    assert_serves(&server);
    server.forget_peak();
    let before = server.peak_resident();
    let mut kept = Vec::new();
    for _ in 0..4 {
        for option in [Opt(77), Opt::GO, Opt::LIST, Opt::EXPORT_NAME, Opt::SET_META_CONTEXT] {
            for length in [16 << 20, u32::MAX] {
                let mut client = RawClient::negotiate(server.endpoint());
                client.send_option_header(magic::IHAVEOPT, option, length);
                kept.push(client);
            }
        }
        let mut client = RawClient::negotiate(server.endpoint());
        client.structured_reply().unwrap();
        let mut queries = meta_data("", &["base:allocation"]);
        queries[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        client.option_error(Opt::SET_META_CONTEXT, &queries);
        let mut name = info_data("", &[]);
        name[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        client.option_error(Opt::INFO, &name);
        kept.push(client);

        let mut client = RawClient::go_simple(server.endpoint());
        client.send(&Request::new(Cmd::WRITE, 0, 0xffff_fff0));
        kept.push(client);
        let mut client = RawClient::go_extended(server.endpoint());
        client.send(&Request::new(Cmd::WRITE, 0, u64::MAX).flags(cmd_flag::PAYLOAD_LEN));
        kept.push(client);
    }
    assert_serves(&server);
    let grown = server.peak_resident().saturating_sub(before);
    // Some twenty connections stay, with their stacks and buffers; not one has what it announced.
    assert!(grown < 64 * MIB, "resident memory grew by {} MiB", grown / MIB);
}

/// S-ROB-05: 64 MiB of replies are under way before the first is read.
fn pipelined_reads_do_not_deadlock(setup: Setup) {
    let server = setup.serving("memory:4M");
    let data = Pattern(1).bytes(0, 4 * MIB as usize);
    let mut writer = RawClient::go_simple(server.endpoint());
    writer.write(0, &data);
    writer.finish();
    for mode in MODES {
        let mut client = RawClient::go_in(mode, server.endpoint());
        let offset = |index: u64| index * 40_009;
        let reads: Vec<_> = (0..64).map(|index| Request::read(offset(index), MIB)).collect();
        let cookies = client.send_all(&reads);
        for (index, cookie) in (0..).zip(cookies) {
            let start = offset(index) as usize;
            let expected = &data[start..start + MIB as usize];
            assert_same_bytes(&client.reply_to(cookie).data(), expected, "pipelined");
        }
        client.finish();
    }
}

/// S-ROB-05, S-ROB-04, S-ROB-03: it stops itself: the server stops reading from it, not from others, and buffers
/// no more than a bounded amount of replies.
fn a_client_that_never_reads_is_held_back(setup: Setup) {
    let server = setup.serving("memory:4M");
    let mut writer = RawClient::go_simple(server.endpoint());
    writer.write(0, &vec![7; 4 * MIB as usize]);
    server.forget_peak();
    let before = server.peak_resident();

    let mut flooder = RawClient::go_simple(server.endpoint());
    let burst = Request::read(0, MIB).encode(Mode::Simple, 1).repeat(40_000);
    let mut sent = 0;
    // About 64 MiB of requests: more than all socket buffers between client and server hold.
    for _ in 0..64 {
        let taken = flooder.wire().send_until_stuck(&burst, Duration::from_millis(200));
        sent += taken;
        if taken < burst.len() {
            break;
        }
        writer.read(0, 4096);
    }
    assert!(sent < 64 * burst.len(), "the server took {sent} bytes of requests without an end");
    writer.read(0, 4096);
    let grown = server.peak_resident().saturating_sub(before);
    assert!(grown < 256 * MIB, "resident memory grew by {} MiB", grown / MIB);
    drop(flooder);
    writer.finish();
    assert_serves(&server);
}

/// S-END-05: replies or the end, within the client's patience.
fn half_closed_clients_get_replies_or_the_end(setup: Setup) {
    let server = setup.serving("memory:8M");
    for mode in MODES {
        let mut client = RawClient::go_in(mode, server.endpoint());
        for at in 0..8 {
            client.send(&Request::read(at * MIB, MIB));
        }
        client.wire().shutdown_write();
        while client.next_reply().is_some() {}
    }
    let mut negotiating = RawClient::negotiate(server.endpoint());
    negotiating.wire().shutdown_write();
    negotiating.wire().drain_to_eof();
    let mut silent = RawClient::connect(server.endpoint());
    silent.wire().shutdown_write();
    silent.wire().drain_to_eof();
    assert_serves(&server);
}

/// S-END-04, S-ORD-05: what was answered is done; the connection ended without DISC, in mid-request.
fn completed_writes_survive_an_abrupt_close(setup: Setup) {
    let server = setup.serving("memory:1M");
    let data = Pattern(3).bytes(0, 50_000);
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(1000, &data);
    let half = Request::write(1000, &[0; 50_000]).encode(Mode::Simple, 9);
    client.wire().send(&half[..28]);
    drop(client);
    let mut client = RawClient::go_simple(server.endpoint());
    assert_same_bytes(&client.read(1000, 50_000), &data, "after the abrupt close");
    client.finish();
}

/// S-CMD-WRITE-01, S-END-04: bytes that never came are not written as something else.
fn a_write_cut_short_changes_nothing_beyond_what_came(setup: Setup) {
    let server = setup.serving("memory:1M");
    let before = Pattern(1).bytes(0, MIB as usize);
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(0, &before);
    client.finish();
    let mut client = RawClient::go_simple(server.endpoint());
    let write = Request::write(4096, &[0xee; 500_000]).encode(Mode::Simple, 1);
    client.wire().send(&write[..28 + 100_000]);
    drop(client);
    let mut client = RawClient::go_simple(server.endpoint());
    let after = client.read(0, MIB);
    assert_same_bytes(&after[..4096], &before[..4096], "before the range");
    assert_same_bytes(&after[104_096..], &before[104_096..], "what did not come");
    client.finish();
}

/// S-ROB-01, S-REP-01: eight clients at once, each finds its own data and its own replies.
fn clients_on_one_export_do_not_mix(setup: Setup) {
    let server = setup.serving("memory:8M");
    std::thread::scope(|scope| {
        for index in 0..8 {
            let server = &server;
            scope.spawn(move || {
                let mut client = RawClient::go_in(MODES[index as usize % 3], server.endpoint());
                for round in 0..50 {
                    let data = Pattern(index << 32 | round).bytes(0, 20_000);
                    let at = index * MIB + round * 10_000;
                    client.write(at, &data);
                    assert_same_bytes(&client.read(at, 20_000), &data, "own data");
                }
                client.finish();
            });
        }
    });
}

/// S-ROB-06: at least 32, by default.
fn thirty_two_clients_are_served_at_once(setup: Setup) {
    let server = setup.serving("memory:1M");
    let mut clients: Vec<_> =
        (0..32).map(|index| RawClient::go_in(MODES[index % 3], server.endpoint())).collect();
    for client in &mut clients {
        client.read(0, 4096);
    }
    for client in clients {
        client.finish();
    }
}

/// S-ROB-02, S-ROB-06: with `--max-connections 2` a third client waits or is turned away; it is served once
/// another has left.
fn max_connections_bounds_and_frees_slots(setup: Setup) {
    let server = setup.serve().args(["--max-connections", "2", "memory:1M"]).start();
    let first = RawClient::go_simple(server.endpoint());
    let mut second = RawClient::go_simple(server.endpoint());
    assert!(greeted(&server).is_none(), "a third client was greeted");
    second.read(0, 512);
    first.finish();
    let mut third = None;
    wait_until("a slot is free", SOON, || {
        third = greeted(&server);
        third.is_some()
    });
    let mut third = third.expect("that was waited for");
    third.go("", &[]).unwrap();
    third.read(0, 512);
    third.finish();
    second.finish();
}

/// A client that is past the greeting, if the server greets at all for a moment.
fn greeted(server: &NbdServe) -> Option<RawClient> {
    let mut wire = Wire::try_connect(server.endpoint()).ok()?;
    wire.set_timeout(Duration::from_millis(300));
    wire.try_recv(18)?;
    wire.set_timeout(TIMEOUT);
    let mut client = RawClient::over(wire);
    client.send_client_flags(handshake::FIXED_NEWSTYLE);
    Some(client)
}

/// S-ROB-04: buffers of past payloads do not add up, connection by connection. One arena, since glibc's malloc
/// returns little of what lies in those of other threads, which is not what this is about.
fn large_payloads_are_given_back(setup: Setup) {
    let serve = setup.serve().prepared_by("export MALLOC_ARENA_MAX=1");
    let server = serve.arg("memory:16M").start();
    let data = vec![7; 16 * MIB as usize];
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = RawClient::go_structured(server.endpoint());
        client.write(0, &data);
        client.read(0, 16 * MIB);
        clients.push(client);
    }
    let resident = server.resident();
    // The export itself is 16 MiB; six idle connections that each kept a payload would be 96 MiB more.
    assert!(resident < 16 * MIB + 48 * MIB, "{} MiB resident", resident / MIB);
    for client in clients {
        client.finish();
    }
}

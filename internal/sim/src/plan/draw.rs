//! Drawing a plan from a seed.

use core::time::Duration;

use nbd_engine::client::Limits;
use nbd_testkit::Random;

use super::{
    ClientPlan, DiskPlan, NetPlan, Op, Outage, OutageKind, Plan, ReconnectPlan, ServerPlan, Step,
    StreamFault, StreamFaultKind,
};
use crate::net::Faults;

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// Longer than a run.
const FOR_EVER: u64 = 1_000_000 * SECOND;

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let random = &mut Random::new(seed ^ 0x5eed_0f91_a500_0000);
        let disk = disk(random);
        // A third of the runs is without faults: there, every error is a fault of ours.
        let faulty = !random.one_in(3);
        let clients = clients(random, &disk, faulty);
        let connections: usize = clients.iter().map(|client| client.connections).sum();
        let mut plan = Self {
            seed,
            net: net(random, faulty),
            server: server(random, &disk, connections),
            disk,
            clients,
            outages: Vec::new(),
        };
        if faulty && !random.one_in(3) {
            plan.outages = outages(random);
        }
        if !faulty {
            let disk = &mut plan.disk;
            (disk.read_fails_one_in, disk.write_fails_one_in, disk.flush_fails_one_in) = (0, 0, 0);
            disk.shuts_down_one_in = 0;
        }
        if faulty && seed.is_multiple_of(3) {
            reconnecting(&mut plan, &mut Random::new(!seed));
            let random = &mut Random::new(seed ^ 0x0051_1e0c_e000_0000);
            if random.one_in(2) {
                noticing_silence(&mut plan, random);
            }
        }
        plan
    }
}

/// Has the clients replace lost connections, and leaves out what the protocol gives them no means against.
fn reconnecting(plan: &mut Plan, random: &mut Random) {
    let kept = random.one_in(2).then(|| {
        let capacity = plan.disk.cell * plan.disk.cells;
        random.of(&[capacity / 4, capacity, 16 * capacity])
    });
    // A server that is only cut off may carry out a request after it was sent again.
    for [_, to_client] in &mut plan.net.faults {
        if let Some(fault) = to_client
            && fault.kind == StreamFaultKind::End
        {
            fault.kind = StreamFaultKind::Reset;
        }
    }
    plan.server.max_connections = 1024;
    // Servers die while clients are at work, and mostly with their cache.
    let scale = random.of(&[MILLISECOND, 30 * MILLISECOND, SECOND]);
    plan.outages = (0..1 + random.below(5))
        .map(|_| Outage {
            after: random.below(scale),
            kind: random.of(&[OutageKind::Orderly, OutageKind::Kill, OutageKind::PowerCut]),
            down: random.below(scale),
            silent: random.one_in(4).then(|| random.below(20 * SECOND)),
        })
        .collect();
    for outage in &mut plan.outages {
        if random.one_in(2) {
            outage.kind = OutageKind::PowerCut;
        }
    }
    if kept.is_some() {
        // What is kept is written again over what other clients wrote meanwhile, and is lost by a server that fails.
        plan.clients.truncate(1);
        let disk = &mut plan.disk;
        (disk.write_fails_one_in, disk.flush_fails_one_in, disk.shuts_down_one_in) = (0, 0, 0);
    }
    for client in &mut plan.clients {
        client.reconnect = Some(ReconnectPlan { kept, seed: random.next(), silence: None });
        client.dies_at = client.dies_at.filter(|_| kept.is_none());
        if kept.is_some() && client.request_timeout.is_some() {
            // What is kept is flushed in the end, which has to be possible.
            client.request_timeout = Some(Duration::from_secs(60));
        }
        for step in client.lanes.iter_mut().flatten() {
            if random.one_in(2) {
                step.think = random.below(scale);
            }
            // To another size, which ends the client.
            if let Op::Resize { .. } = step.op {
                step.op = Op::Flush;
            }
            // What was trimmed is not kept, so that anything older may show after a power cut.
            if let (Op::Trim { cell, count, fua }, true) = (step.op, kept.is_some()) {
                step.op = Op::Zero { cell, count, fua, no_hole: false, fast: false };
            }
        }
    }
}

/// Has clients notice by themselves that nothing comes any more, which nothing else tells them then.
fn noticing_silence(plan: &mut Plan, random: &mut Random) {
    // Longer than anything takes that goes on.
    let limit = random.of(&[30 * SECOND, 60 * SECOND, 300 * SECOND]);
    for client in &mut plan.clients {
        if let Some(reconnect) = &mut client.reconnect {
            reconnect.silence = Some(limit);
        }
    }
    for fault in plan.net.faults.iter_mut().flatten().flatten() {
        // What is only held up arrives after the client has sent it again elsewhere.
        if fault.kind == StreamFaultKind::Stall {
            fault.kind = StreamFaultKind::Silence;
        }
        if fault.kind == StreamFaultKind::Silence {
            fault.time = FOR_EVER;
        }
    }
    for outage in &mut plan.outages {
        if outage.silent.is_some() {
            outage.silent = Some(FOR_EVER);
        }
    }
}

/// A time of any order of magnitude.
fn up_to_one_of(random: &mut Random, scales: &[u64]) -> u64 {
    let scale = random.of(scales);
    random.below(scale)
}

fn disk(random: &mut Random) -> DiskPlan {
    let cell = random.of(&[8, 64, 512, 512, 4096]);
    let cells = random.of(&[4, 16, 64]);
    let rate = |random: &mut Random| if random.one_in(3) { random.of(&[5, 20, 50]) } else { 0 };
    DiskPlan {
        cell,
        cells,
        delay: random.of(&[0, 10 * MICROSECOND, MILLISECOND, 50 * MILLISECOND]),
        torn_one_in: random.of(&[0, 2, 5]),
        read_fails_one_in: rate(random),
        write_fails_one_in: rate(random),
        flush_fails_one_in: if random.one_in(3) { random.of(&[2, 5]) } else { 0 },
        failed_flush_is_final: random.one_in(2),
        shuts_down_one_in: if random.one_in(10) { 40 } else { 0 },
        native_fua: random.one_in(2),
        destage_one_in: random.of(&[0, 2, 8]),
    }
}

fn net(random: &mut Random, faulty: bool) -> NetPlan {
    let delay = random.of(&[
        (MICROSECOND, 0),
        (MICROSECOND, 10 * MICROSECOND),
        (10 * MICROSECOND, MILLISECOND),
        (MILLISECOND, 20 * MILLISECOND),
        (MILLISECOND, SECOND),
    ]);
    let faults = if faulty && !random.one_in(3) {
        (0..random.below(8)).map(|_| stream_faults(random)).collect()
    } else {
        Vec::new()
    };
    NetPlan {
        delay,
        window: random.of(&[100, 700, 4096, 4096, 65536]),
        split_one_in: random.of(&[0, 0, 2, 8]),
        accept_fails_one_in: if faulty && random.one_in(6) { 4 } else { 0 },
        faults,
    }
}

fn stream_faults(random: &mut Random) -> Faults {
    let mut fault = || {
        if random.one_in(2) {
            return None;
        }
        // The negotiation takes some hundred bytes.
        let scale = random.of(&[30, 300, 3000, 30_000]);
        let kinds = [
            StreamFaultKind::Reset,
            StreamFaultKind::End,
            StreamFaultKind::Silence,
            StreamFaultKind::Stall,
        ];
        let times = [MILLISECOND, 100 * MILLISECOND, 3 * SECOND, 40 * SECOND];
        let time = up_to_one_of(random, &times);
        Some(StreamFault { byte: random.below(scale), kind: random.of(&kinds), time })
    };
    [fault(), fault()]
}

fn server(random: &mut Random, disk: &DiskPlan, connections: usize) -> ServerPlan {
    let mut limits = Limits::DEFAULT;
    limits.max_in_flight = random.of(&[1, 2, 8, 128]);
    let capacity = disk.cell * disk.cells;
    // What is longer than the maximum payload is split by the client; a multiple of the cells, so that each is whole.
    let payload = (disk.cell * random.of(&[1, 3, 16, 1000])).max(512);
    limits.max_payload = u32::try_from(payload).unwrap_or(u32::MAX).max(4096);
    limits.max_in_flight_bytes = capacity * random.of(&[1, 4, 1000]);
    limits.max_extents = random.of(&[1, 3, 4096]);
    ServerPlan {
        limits,
        buffer_memory: random.of(&[64 << 10, 256 << 10, 16 << 20]),
        structured_replies: !random.one_in(4),
        extended_headers: !random.one_in(3),
        max_connections: if random.one_in(8) { connections.div_ceil(2) } else { 1024 },
        threads_of_its_own: random.one_in(3),
        hangs_up: random.one_in(2),
    }
}

fn outages(random: &mut Random) -> Vec<Outage> {
    let scale = random.of(&[MILLISECOND, 30 * MILLISECOND, SECOND]);
    let kinds = [OutageKind::Orderly, OutageKind::Kill, OutageKind::PowerCut, OutageKind::PowerCut];
    (0..1 + random.below(4))
        .map(|_| Outage {
            after: random.below(scale),
            kind: random.of(&kinds),
            down: up_to_one_of(random, &[MILLISECOND, SECOND]),
            silent: random.one_in(3).then(|| random.below(20 * SECOND)),
        })
        .collect()
}

fn clients(random: &mut Random, disk: &DiskPlan, faulty: bool) -> Vec<ClientPlan> {
    let mut next_id = 0;
    let think = random.of(&[0, 10 * MICROSECOND, MILLISECOND, 100 * MILLISECOND]);
    (0..1 + random.below(3))
        .map(|_| {
            let connections = random.of(&[1, 1, 2, 3]);
            let cancels = random.one_in(3);
            let lanes = (0..1 + random.below(4))
                .map(|_| {
                    let mut lane = Vec::new();
                    for _ in 0..1 + random.below(10) {
                        next_id += 1;
                        let cancel = cancels && random.one_in(4);
                        lane.push(Step {
                            op: op(random, disk, connections),
                            id: next_id,
                            think: if random.one_in(3) { random.below(think + 1) } else { 0 },
                            cancel_after: cancel
                                .then(|| up_to_one_of(random, &[1, MILLISECOND, SECOND])),
                            form: random.below(256) as u8,
                        });
                    }
                    lane
                })
                .collect();
            ClientPlan {
                connections,
                caller_drives: random.one_in(2),
                request_timeout: random.one_in(3).then(|| {
                    Duration::from_nanos(random.of(&[5 * MILLISECOND, SECOND, 30 * SECOND]))
                }),
                structured_replies: !random.one_in(4),
                extended_headers: !random.one_in(3),
                max_in_flight: random.of(&[1, 2, 16, 128]),
                lanes,
                reconnect: None,
                dies_at: (faulty && random.one_in(8)).then(|| random.below(SECOND)),
            }
        })
        .collect()
}

fn op(random: &mut Random, disk: &DiskPlan, connections: usize) -> Op {
    let cells = disk.cells;
    let longest = if random.one_in(10) { cells } else { (cells / 4).max(1) };
    let count = if random.one_in(40) { 0 } else { 1 + random.below(longest) };
    // One of many reaches past the end.
    let room = if random.one_in(60) { cells + 1 } else { cells - count + 1 };
    let cell = random.below(room);
    let fua = random.one_in(6);
    match random.below(20) {
        0..6 => Op::Read { cell, count },
        6..12 => Op::Write { cell, count, fua },
        12 => Op::Zero { cell, count, fua, no_hole: random.one_in(2), fast: random.one_in(3) },
        13 => Op::Trim { cell, count, fua },
        14..17 => Op::Flush,
        17 => Op::Cache { cell, count },
        18 => Op::Status { cell, count },
        _ if connections == 1 && random.one_in(3) => {
            Op::Resize { cells: cells / 2 + random.below(cells / 2 + 1) }
        }
        _ => Op::Read { cell, count },
    }
}

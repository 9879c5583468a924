//! An export that lets so many bytes and requests through in a second.

mod buckets;

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nbd_proto::Command;

use buckets::Buckets;
pub(super) use buckets::Shares;

use super::layer::{Layer, Layered};
use super::{ClientInfo, CloseReason, PeerAddr};

/// Another export, of either kind, whose requests wait when there are more of them than a rate allows: in all, and of
/// each client.
///
/// A request that waits occupies neither a thread nor a task; the requests of a connection stay in order meanwhile, and
/// nothing more is received once a MiB of payload waits. Only what is carried out counts, so that a client that
/// disconnects has used up nothing for others.
///
/// - Bytes are those that are read and written; all other requests count as requests alone.
/// - A request is never split: it may begin when the rate is not in debt, and its debt is paid before the next one.
///   So over any time at most `rate × time`, what a [burst](RateLimit::burst) allows, and one request for each
///   connection are carried out.
/// - A client is what has the same TLS identity; without one the same IP address; on Unix sockets the same user;
///   otherwise one connection.
///
/// ```
/// use nbd_engine::export::{Export, Memory, RateLimited, RateLimit, Rates};
///
/// let limit = RateLimit::new()
///     .for_export(Rates::new().bytes_per_second(100 << 20))
///     .for_each_client(Rates::new().bytes_per_second(20 << 20).requests_per_second(1000));
/// let disk = RateLimited::new(Memory::new(1 << 30)?, limit);
/// assert!(disk.admits());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type RateLimited<E> = Layered<E, RateLimit>;

impl<E> RateLimited<E> {
    /// Puts the limit around `inner`.
    pub const fn new(inner: E, limit: RateLimit) -> Self {
        Self::with(inner, limit)
    }
}

/// Clients without a connection that are kept before it is looked which of them still owe something.
const MAX_GONE: usize = 64;

/// Bounds of a rate; without any, everything passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    bytes: Option<NonZeroU64>,
    requests: Option<NonZeroU64>,
}

impl Rates {
    /// No bounds.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: None, requests: None }
    }

    /// Bytes that are read and written in a second; 0 for no bound.
    #[must_use]
    pub const fn bytes_per_second(mut self, bytes: u64) -> Self {
        self.bytes = NonZeroU64::new(bytes);
        self
    }

    /// Requests in a second; 0 for no bound.
    #[must_use]
    pub const fn requests_per_second(mut self, requests: u64) -> Self {
        self.requests = NonZeroU64::new(requests);
        self
    }

    const fn is_bounded(self) -> bool {
        self.bytes.is_some() || self.requests.is_some()
    }
}

/// The layer of [`RateLimited`]: how much passes.
#[derive(Debug)]
pub struct RateLimit {
    burst: Duration,
    export: Option<Buckets>,
    for_each_client: Option<Rates>,
    clients: Mutex<HashMap<ClientKey, Client>>,
    /// Clients without a connection, which are kept for their debt. Changes under the lock of the clients alone.
    gone: AtomicUsize,
    /// Tells this limit from others in the [`Shares`] of a client.
    identity: Arc<()>,
}

/// A client with the number of its connections.
#[derive(Debug)]
struct Client {
    buckets: Arc<Buckets>,
    connections: usize,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl RateLimit {
    /// What a [burst](Self::burst) is by default.
    pub const BURST: Duration = Duration::from_millis(100);

    /// No limit yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            burst: Self::BURST,
            export: None,
            for_each_client: None,
            clients: Mutex::default(),
            gone: AtomicUsize::new(0),
            identity: Arc::default(),
        }
    }

    /// What all clients together may do. Default no bounds.
    #[must_use]
    pub fn for_export(mut self, rates: Rates) -> Self {
        self.export = rates.is_bounded().then(|| Buckets::new(rates));
        self
    }

    /// What each client may do, with all of its connections to this export. Default no bounds.
    #[must_use]
    pub const fn for_each_client(mut self, rates: Rates) -> Self {
        self.for_each_client = if rates.is_bounded() { Some(rates) } else { None };
        self
    }

    /// What was not used of the rate in so long a time before may be used at once. The default is
    /// [`BURST`](Self::BURST); with zero there are no bursts.
    #[must_use]
    pub const fn burst(mut self, time: Duration) -> Self {
        self.burst = time;
        self
    }

    // A panic leaves numbers in some state between before and after.
    fn clients(&self) -> MutexGuard<'_, HashMap<ClientKey, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets clients that are gone and have paid their debt, once there are many.
    fn forget_gone(&self, now: Instant) {
        if self.gone.load(Ordering::Relaxed) <= MAX_GONE {
            return;
        }
        let mut clients = self.clients();
        clients.retain(|_, client| client.connections > 0 || client.buckets.owe(now));
        let gone = clients.values().filter(|client| client.connections == 0).count();
        self.gone.store(gone, Ordering::Relaxed);
    }

    /// Calls `act` with all that the client's request counts in.
    fn each(&self, client: &ClientInfo, mut act: impl FnMut(&Buckets)) {
        if let Some(export) = &self.export {
            act(export);
        }
        if self.for_each_client.is_some() {
            client.shares.with(&self.identity, || self.buckets_of(client), act);
        }
    }

    /// What the requests of a client count in, with all of its connections.
    fn buckets_of(&self, client: &ClientInfo) -> Option<Arc<Buckets>> {
        self.clients().get(&ClientKey::of(client)).map(|known| Arc::clone(&known.buckets))
    }
}

impl Layer for RateLimit {
    const ADMITS: bool = true;

    fn client_entered(&self, client: &ClientInfo) {
        let Some(rates) = self.for_each_client else { return };
        match self.clients().entry(ClientKey::of(client)) {
            Entry::Occupied(client) => {
                let client = client.into_mut();
                client.connections += 1;
                if client.connections == 1 {
                    self.gone.fetch_sub(1, Ordering::Relaxed);
                }
            }
            Entry::Vacant(room) => {
                room.insert(Client { buckets: Arc::new(Buckets::new(rates)), connections: 1 });
            }
        }
    }

    /// A client that reconnects still owes what it owed.
    fn client_left(&self, client: &ClientInfo, _reason: &CloseReason) {
        client.shares.forget(&self.identity);
        let mut clients = self.clients();
        let Some(entry) = clients.get_mut(&ClientKey::of(client)) else { return };
        entry.connections -= 1;
        if entry.connections == 0 {
            self.gone.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pace(&self, client: &ClientInfo, _command: &Command, now: Instant) -> Duration {
        let mut wait = Duration::ZERO;
        self.each(client, |buckets| wait = wait.max(buckets.wait(now)));
        wait.saturating_sub(self.burst)
    }

    fn begun(&self, client: &ClientInfo, command: &Command, now: Instant) {
        if self.for_each_client.is_some() {
            self.forget_gone(now);
        }
        self.each(client, |buckets| buckets.take(command, now));
    }
}

/// What connections have to share for them to be one client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ClientKey {
    Tls(Vec<String>),
    Address(IpAddr),
    User(u32),
    Connection(u64),
}

impl ClientKey {
    fn of(client: &ClientInfo) -> Self {
        match (&client.tls, &client.peer) {
            (Some(identity), _) if !identity.names.is_empty() => Self::Tls(identity.names.clone()),
            (_, PeerAddr::Tcp(address)) => Self::Address(address.ip().to_canonical()),
            (_, PeerAddr::Unix(Some(peer))) => Self::User(peer.uid),
            _ => Self::Connection(client.connection),
        }
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;
    use crate::export::{TlsIdentity, UnixPeer};

    fn client(connection: u64, peer: impl Into<PeerAddr>) -> ClientInfo {
        ClientInfo::new(connection, peer.into())
    }

    fn tcp(connection: u64, address: &str) -> ClientInfo {
        client(connection, address.parse::<std::net::SocketAddr>().unwrap())
    }

    fn command(random: &mut nbd_testkit::Random) -> Command {
        match random.below(4) {
            0 => Command::flush(),
            1 => Command::write_zeroes(0, 1 << 30),
            2 => Command::write(0, 1 + random.below(100_000)),
            _ => {
                let bound = 1 << random.below(20);
                Command::read(0, 1 + random.below(bound))
            }
        }
    }

    /// Clients that ask without end, in virtual time: what is carried out within any time, of each client and in all,
    /// stays within the rate, and nobody waits longer than what was carried out before costs.
    #[test]
    fn within_any_time_no_more_passes_than_the_rate_a_burst_and_a_request_and_no_less() {
        cases(60, |random| {
            let start = Instant::now();
            let rates = |random: &mut nbd_testkit::Random| {
                let pick = random.below(4);
                Rates::new()
                    .bytes_per_second(if pick & 1 == 0 { 1000 + random.below(1 << 20) } else { 0 })
                    .requests_per_second(if pick & 2 == 0 { 1 + random.below(200) } else { 0 })
            };
            let (all, each) = (rates(random), rates(random));
            let burst = Duration::from_millis(random.below(300));
            let limit = RateLimit::new().for_export(all).for_each_client(each).burst(burst);
            // Two connections of one client, and one of another.
            let clients = [tcp(0, "10.0.0.1:1"), tcp(1, "10.0.0.1:2"), tcp(2, "10.0.0.2:1")];
            clients.iter().for_each(|client| limit.client_entered(client));
            let mut next = [start; 3];
            let mut done: Vec<(usize, Instant, Command)> = Vec::new();
            let mut waiting = [None; 3];
            for _ in 0..400 {
                let index = (0..3).min_by_key(|index| next[*index]).unwrap();
                let now = next[index];
                let command = *waiting[index].get_or_insert_with(|| command(random));
                let wait = limit.pace(&clients[index], &command, now);
                if wait > Duration::ZERO {
                    next[index] = now + wait;
                    continue;
                }
                limit.begun(&clients[index], &command, now);
                done.push((index, now, command));
                waiting[index] = None;
                next[index] = now + Duration::from_micros(random.below(2000));
            }
            let of_client = |client: usize, index: usize| match client {
                0 => index < 2,
                1 => index == 2,
                _ => true,
            };
            for (client, rates) in [(0, each), (1, each), (2, all)] {
                let done: Vec<_> =
                    done.iter().filter(|(index, ..)| of_client(client, *index)).collect();
                for (first, (_, from, _)) in done.iter().enumerate() {
                    let (mut bytes, mut requests, mut largest) = (0, 0_u64, 0);
                    for (_, at, command) in &done[first..] {
                        bytes += command.buffer_length();
                        requests += 1;
                        largest = largest.max(command.buffer_length());
                        let time = (*at - *from + burst).as_secs_f64();
                        if let Some(rate) = rates.bytes {
                            let bound = rate.get() as f64 * time;
                            assert!(bytes as f64 <= bound + largest as f64 + 1.0);
                        }
                        if let Some(rate) = rates.requests {
                            let bound = rate.get() as f64 * time;
                            assert!(requests as f64 <= bound + 1.0 + 1e-6);
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn a_full_rate_is_used_up() {
        let limit = RateLimit::new().for_export(Rates::new().bytes_per_second(1 << 20));
        let one = tcp(0, "10.0.0.1:1");
        limit.client_entered(&one);
        let start = Instant::now();
        let mut now = start;
        let command = Command::read(0, 65536);
        for _ in 0..160 {
            now += limit.pace(&one, &command, now);
            assert_eq!(limit.pace(&one, &command, now), Duration::ZERO);
            limit.begun(&one, &command, now);
        }
        // 10 MiB at 1 MiB a second, but for the last request and the burst, which are not waited for.
        assert_eq!(
            now - start,
            Duration::from_secs(10) - Duration::from_nanos(62_500_000) - RateLimit::BURST
        );
    }

    /// What a client's connection has looked up is not looked up again, of whichever of several limits.
    #[test]
    fn limits_around_each_other_and_other_connections_do_not_take_each_others_share() {
        let limits = [1000, 10]
            .map(|rate| RateLimit::new().for_each_client(Rates::new().requests_per_second(rate)));
        let (one, same, other) = (tcp(0, "10.0.0.1:1"), tcp(1, "10.0.0.1:2"), tcp(2, "10.0.0.2:1"));
        let now = Instant::now();
        let command = Command::flush();
        let wait = |limit: &RateLimit, client: &ClientInfo| limit.pace(client, &command, now);
        for limit in &limits {
            [&one, &same, &other].into_iter().for_each(|client| limit.client_entered(client));
            (0..1000).for_each(|_| limit.begun(&one, &command, now));
        }
        for (limit, seconds) in limits.iter().zip([1, 100]) {
            let expected = Duration::from_secs(seconds) - RateLimit::BURST;
            // A copy of what is known of a client is that client.
            for client in [&one, &one.clone(), &same, &same] {
                assert_eq!(wait(limit, client), expected);
            }
            assert_eq!(wait(limit, &other), Duration::ZERO);
            limit.client_left(&one, &CloseReason::Vanished);
            assert_eq!(wait(limit, &same), expected);
        }
        // A client that never entered is none of its business.
        assert_eq!(wait(&limits[1], &tcp(3, "10.0.0.3:1")), Duration::ZERO);
    }

    #[test]
    fn a_client_is_known_by_identity_address_user_or_connection() {
        let with_tls = |connection, name: &str| {
            let mut info = tcp(connection, "10.0.0.1:1");
            let names = if name.is_empty() { vec![] } else { vec![name.to_owned()] };
            info.tls = Some(TlsIdentity { names, ..TlsIdentity::default() });
            info
        };
        let unix = |connection, uid| {
            client(connection, PeerAddr::Unix(Some(UnixPeer { uid, gid: 0, pid: 1 })))
        };
        for (one, other, same) in [
            (tcp(0, "10.0.0.1:1"), tcp(1, "10.0.0.1:2"), true),
            (tcp(0, "10.0.0.1:1"), tcp(1, "[::ffff:10.0.0.1]:2"), true),
            (tcp(0, "10.0.0.1:1"), tcp(1, "10.0.0.2:1"), false),
            (with_tls(0, "a"), with_tls(1, "a"), true),
            (with_tls(0, "a"), with_tls(1, "b"), false),
            (with_tls(0, ""), tcp(1, "10.0.0.1:1"), true),
            (unix(0, 5), unix(1, 5), true),
            (unix(0, 5), unix(1, 6), false),
            (client(0, "stream"), client(1, "stream"), false),
        ] {
            assert_eq!(ClientKey::of(&one) == ClientKey::of(&other), same, "{one:?} {other:?}");
        }
    }

    #[test]
    fn a_client_that_reconnects_still_owes_what_it_owed_and_is_forgotten_when_it_owes_nothing() {
        let limit = RateLimit::new().for_each_client(Rates::new().bytes_per_second(1000));
        let now = Instant::now();
        let one = tcp(0, "10.0.0.1:1");
        let command = Command::write(0, 100_000);
        let enter = |client: &ClientInfo| limit.client_entered(client);
        let leave = |client: &ClientInfo| limit.client_left(client, &CloseReason::Vanished);
        enter(&one);
        limit.begun(&one, &command, now);
        leave(&one);
        enter(&one);
        let wait = limit.pace(&one, &command, now);
        assert_eq!(wait, Duration::from_secs(100) - RateLimit::BURST);
        leave(&one);
        for number in 0..1000_u64 {
            let other = client(number, "stream");
            enter(&other);
            limit.begun(&other, &command, now + Duration::from_secs(200 * number));
            leave(&other);
        }
        assert!(limit.clients().len() <= MAX_GONE + 2);
    }
}

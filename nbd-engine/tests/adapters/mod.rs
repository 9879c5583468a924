//! What every adapter must do, over TCP and Unix sockets: one set of scenarios for all of them.
//!
//! An adapter's tests include this folder by its path, implement [`Adapter`] for a server of theirs, and say
//! `adapter_suite!` with the type's name. Nothing here waits without a bound, and nothing asserts a time.

mod disks;
mod durability;
mod faults;
mod gate;
mod limits;
mod order;
mod serving;
mod shutdown;
mod vanishing;

use std::path::Path;
use std::time::Duration;

use nbd_engine::export::ExportMap;
use nbd_engine::net::LocalAddr;
use nbd_engine::server::Settings;
use nbd_testkit::Endpoint;
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::RawClient;
use nbd_testkit::server::Transport;
use tempfile::TempDir;

pub(crate) mod scenarios {
    pub(crate) use super::durability::*;
    pub(crate) use super::faults::*;
    pub(crate) use super::limits::*;
    pub(crate) use super::order::*;
    pub(crate) use super::serving::*;
    pub(crate) use super::shutdown::*;
    pub(crate) use super::vanishing::*;
}

/// The longest that anything may take that should happen by itself, on the slowest of machines.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A deadline of the server's that a test waits for.
const SHORT: Duration = Duration::from_millis(50);

/// A server of the adapter.
pub(crate) trait Adapter: Sized {
    /// A server that listens nowhere yet.
    fn start(exports: ExportMap, settings: Settings) -> Self;

    /// Listens on a free port of the loopback address.
    fn listen_tcp(&self) -> LocalAddr;

    /// Listens on a Unix socket.
    fn listen_unix(&self, path: &Path) -> LocalAddr;

    /// Connections at the moment.
    fn connections(&self) -> usize;

    /// Begins to shut down.
    fn shut_down(&self);

    /// Waits for the end of the server and its listeners; panics when that takes longer than [`LIMIT`].
    fn wait(self);
}

/// A server that listens in one place, and a folder for its socket.
struct Server<A> {
    adapter: A,
    endpoint: Endpoint,
    dir: TempDir,
}

impl<A: Adapter> Server<A> {
    fn start(transport: Transport, exports: ExportMap) -> Self {
        Self::with_settings(transport, exports, Settings::default())
    }

    fn with_settings(transport: Transport, exports: ExportMap, settings: Settings) -> Self {
        let adapter = A::start(exports, settings);
        let dir = TempDir::new().expect("a folder for the socket");
        let address = match transport {
            Transport::Tcp => adapter.listen_tcp(),
            Transport::Unix => adapter.listen_unix(&dir.path().join("nbd.sock")),
        };
        Self { adapter, endpoint: endpoint(address), dir }
    }

    /// A client that uses the default export with simple replies.
    #[track_caller]
    fn client(&self) -> RawClient {
        RawClient::go_simple(&self.endpoint)
    }

    /// Everybody has left, and the server has noticed.
    #[track_caller]
    fn expect_no_connections(&self) {
        wait_until("no connection is left", LIMIT, || self.adapter.connections() == 0);
    }

    /// Shuts down and waits for the end.
    fn stop(self) {
        self.adapter.shut_down();
        self.adapter.wait();
    }
}

fn endpoint(address: LocalAddr) -> Endpoint {
    match address {
        LocalAddr::Tcp(address) => Endpoint::Tcp(address),
        LocalAddr::Unix(path) => Endpoint::Unix(path),
    }
}

/// Makes a test of each scenario for an adapter, on both transports.
macro_rules! adapter_suite {
    ($adapter:ty) => {
        $crate::adapters::adapter_suite! { @scenarios $adapter,
            what_is_written_is_read_back
            exports_are_told_apart_by_name
            the_first_export_is_the_default
            an_unknown_name_is_refused_and_another_one_can_follow
            several_listeners_serve_the_same_exports
            a_slow_request_does_not_hold_up_others
            replies_are_sent_in_the_order_in_which_work_ends
            a_slow_write_is_overtaken_too
            emulated_fua_flushes_once_after_the_write
            native_fua_is_passed_down_and_nothing_is_flushed
            fua_is_not_offered_without_flush_or_native_support
            flush_covers_writes_of_every_connection
            an_export_that_panics_fails_the_request_alone
            an_export_that_panics_inline_fails_the_request_alone
            an_async_export_that_panics_fails_the_request_alone
            a_read_of_the_wrong_length_is_eio
            pieces_of_no_length_do_no_harm
            extents_that_tell_nothing_are_eio
            errors_of_an_export_reach_the_client_with_their_text
            a_silent_client_is_closed_by_the_handshake_timeout
            a_client_that_never_chooses_an_export_is_closed_by_the_handshake_timeout
            the_handshake_timeout_spares_clients_in_transmission
            no_connection_is_counted_before_a_client_comes
            a_client_above_the_most_connections_waits_until_one_leaves
            one_connection_can_come_from_any_listener
            a_client_that_does_not_read_stops_itself
            a_client_that_stops_sending_at_any_byte_is_let_go
            a_client_that_vanishes_at_any_byte_frees_its_place
            a_client_that_vanishes_at_any_byte_of_the_replies_frees_its_place
            a_client_that_vanishes_while_requests_run_frees_its_place
            shutdown_finishes_requests_in_flight_and_refuses_later_ones
            shutdown_lets_idle_clients_go
            shutdown_ends_a_server_that_nobody_came_to
            shutdown_stops_listening_and_removes_the_unix_path
            the_drain_timeout_ends_a_request_that_never_finishes
            the_drain_timeout_ends_a_client_that_does_not_read
            the_drain_timeout_ends_a_client_in_the_middle_of_a_request
        }
    };
    (@scenarios $adapter:ty, $($scenario:ident)*) => {
        $crate::adapters::adapter_suite! { @transport tcp Tcp $adapter, $($scenario)* }
        $crate::adapters::adapter_suite! { @transport unix Unix $adapter, $($scenario)* }
    };
    (@transport $name:ident $transport:ident $adapter:ty, $($scenario:ident)*) => {
        mod $name {
            use nbd_testkit::server::Transport;

            $(
                #[test]
                fn $scenario() {
                    $crate::adapters::scenarios::$scenario::<$adapter>(Transport::$transport);
                }
            )*
        }
    };
}
pub(crate) use adapter_suite;

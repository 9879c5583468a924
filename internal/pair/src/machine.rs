//! The verbs that both connections have.

use core::fmt::Debug;

use nbd_proto::{Error, Finished, Misuse, OrderlyEnd, Segments, Wants, client, server};

/// A connection of either role.
pub trait Machine {
    /// What it reports.
    type Event: Debug;

    /// See [`server::Connection::next_event`].
    fn next_event(&mut self, input: &mut &[u8]) -> Option<Self::Event>;

    /// See [`server::Connection::wants`].
    fn wants(&self) -> Wants;

    /// See [`server::Connection::payload_received`].
    fn payload_received(&mut self, count: u64) -> Result<(), Misuse>;

    /// See [`server::Connection::end_of_stream`].
    fn end_of_stream(&mut self);

    /// See [`server::Connection::tls_established`].
    fn tls_established(&mut self) -> Result<(), Misuse>;

    /// See [`server::Connection::segments`].
    fn segments(&self) -> Segments<'_>;

    /// See [`server::Connection::transmitted`].
    fn transmitted(&mut self, count: usize) -> Result<Finished<'_>, Misuse>;

    /// See [`server::Connection::requests_in_flight`].
    fn requests_in_flight(&self) -> usize;

    /// See [`server::Connection::is_transmitting`].
    fn is_transmitting(&self) -> bool;

    /// See [`server::Connection::is_closing`].
    fn is_closing(&self) -> bool;

    /// How the connection ended, if the event is the last one.
    fn closed(event: &Self::Event) -> Option<Result<OrderlyEnd, Error>>;
}

macro_rules! machine {
    ($role:ident) => {
        impl Machine for $role::Connection {
            type Event = $role::Event;

            fn next_event(&mut self, input: &mut &[u8]) -> Option<$role::Event> {
                self.next_event(input)
            }

            fn wants(&self) -> Wants {
                self.wants()
            }

            fn payload_received(&mut self, count: u64) -> Result<(), Misuse> {
                self.payload_received(count)
            }

            fn end_of_stream(&mut self) {
                self.end_of_stream();
            }

            fn tls_established(&mut self) -> Result<(), Misuse> {
                self.tls_established()
            }

            fn segments(&self) -> Segments<'_> {
                self.segments()
            }

            fn transmitted(&mut self, count: usize) -> Result<Finished<'_>, Misuse> {
                self.transmitted(count)
            }

            fn requests_in_flight(&self) -> usize {
                self.requests_in_flight()
            }

            fn is_transmitting(&self) -> bool {
                self.is_transmitting()
            }

            fn is_closing(&self) -> bool {
                self.is_closing()
            }

            fn closed(event: &$role::Event) -> Option<Result<OrderlyEnd, Error>> {
                match event {
                    $role::Event::Closed(end) => Some(*end),
                    _ => None,
                }
            }
        }
    };
}

machine!(client);
machine!(server);

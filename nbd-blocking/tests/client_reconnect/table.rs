//! The table of `docs/reconnect.md`: what becomes of each request in each outage.

use std::any::Any;
use std::time::Duration;

use nbd_blocking::Client;
use nbd_blocking::client::{ClientConfig, Error, Flags, GaveUp, LostReason, Reconnect};
use nbd_support::bounded;
use nbd_testkit::process::wait_until;

use super::fragile::{Fragile, MARK, Moment, SIZE};
use super::serial::reconnect;

/// A row: a request for the first bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Read,
    Status,
    Cache,
    Change(Change, Flags),
    Flush,
    Resize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Write,
    WriteZeroes,
    Trim,
}

const LENGTH: u64 = 4096;
/// Far away: so that nothing hangs.
const SOON: Duration = Duration::from_secs(60);
const BEFORE: u8 = 1;
const WRITTEN: u8 = 2;

impl Change {
    const ALL: [Self; 3] = [Self::Write, Self::WriteZeroes, Self::Trim];

    /// What the bytes are after it.
    const fn after(self) -> u8 {
        if matches!(self, Self::Write) { WRITTEN } else { 0 }
    }
}

impl Row {
    fn all() -> impl Iterator<Item = Self> {
        let others = [Self::Read, Self::Status, Self::Cache, Self::Flush, Self::Resize];
        Self::changes().chain(others)
    }

    fn changes() -> impl Iterator<Item = Self> {
        let flags = [Flags::empty(), Flags::FUA].into_iter();
        flags.flat_map(|flags| Change::ALL.map(|what| Self::Change(what, flags)))
    }

    const fn is_change(self) -> bool {
        matches!(self, Self::Change(..))
    }

    /// The export's call that carries it out.
    const fn call(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Status => "extents",
            Self::Cache => "cache",
            Self::Change(Change::Write, _) => "write",
            Self::Change(Change::WriteZeroes, _) => "write zeroes",
            Self::Change(Change::Trim, _) => "trim",
            Self::Flush => "flush",
            Self::Resize => "resize",
        }
    }

    fn run(self, client: &Client) -> Result<(), Error> {
        match self {
            Self::Read => client.read(0, LENGTH as usize, Flags::empty()).map(drop),
            Self::Status => client.block_status(0, LENGTH, Flags::empty()).map(drop),
            Self::Cache => client.cache(0, LENGTH),
            Self::Change(Change::Write, flags) => {
                client.write(0, vec![WRITTEN; LENGTH as usize], flags)
            }
            Self::Change(Change::WriteZeroes, flags) => client.write_zeroes(0, LENGTH, flags),
            Self::Change(Change::Trim, flags) => client.trim(0, LENGTH, flags),
            Self::Flush => client.flush(),
            Self::Resize => client.resize(2 * SIZE),
        }
    }

    /// Submits it without waiting; `None` for a resize, which has to be waited for.
    fn submit(self, client: &Client) -> Option<Box<dyn Any>> {
        let none = Flags::empty();
        Some(match self {
            Self::Read => Box::new(client.submit_read(0, LENGTH as usize, none)),
            Self::Status => Box::new(client.submit_block_status(0, LENGTH, none)),
            Self::Cache => Box::new(client.submit_cache(0, LENGTH)),
            Self::Change(Change::Write, flags) => {
                Box::new(client.submit_write(0, vec![WRITTEN; LENGTH as usize], flags))
            }
            Self::Change(Change::WriteZeroes, flags) => {
                Box::new(client.submit_write_zeroes(0, LENGTH, flags))
            }
            Self::Change(Change::Trim, flags) => Box::new(client.submit_trim(0, LENGTH, flags)),
            Self::Flush => Box::new(client.submit_flush()),
            Self::Resize => return None,
        })
    }
}

/// A disk whose first bytes are durable, and a client of it with one request in flight at a time.
fn disk(reconnect: Reconnect) -> (Fragile, Client, tempfile::TempDir) {
    let disk = Fragile::new();
    let config = ClientConfig::new().with_max_in_flight(1).with_reconnect(reconnect);
    let (client, folder) = disk.connect(config);
    client.write(0, vec![BEFORE; LENGTH as usize], Flags::FUA).unwrap();
    (disk, client, folder)
}

/// How a client may be told to deal with changes.
fn choices() -> [(&'static str, Reconnect); 3] {
    [
        ("reports", reconnect()),
        ("keeps", reconnect().with_kept_writes(1 << 20)),
        ("sends once", reconnect().with_resent_writes(false)),
    ]
}

fn found(client: &Client) -> Vec<u8> {
    client.read(0, LENGTH as usize, Flags::empty()).unwrap().to_vec()
}

/// Every request, with every choice.
fn each(test: impl Fn(Row, &str, Reconnect)) {
    for row in Row::all() {
        for (choice, reconnect) in choices() {
            test(row, choice, reconnect);
        }
    }
}

#[test]
fn what_was_not_sent_is_sent_once() {
    bounded(|| {
        each(|row, choice, reconnect| {
            let (disk, client, _folder) = disk(reconnect);
            disk.plan("marked", Moment::BreakBefore, 1);
            let first = client.submit_read(MARK, 512, Flags::empty());
            client.send_submitted();
            wait_until("the connection is broken", SOON, || disk.calls("marked") == 1);
            row.run(&client).unwrap_or_else(|error| panic!("{row:?}, {choice}: {error}"));
            first.wait().unwrap();
            assert_eq!((disk.calls("marked"), disk.calls(row.call())), (2, 1), "{row:?}, {choice}");
        });
    });
}

#[test]
fn what_was_sent_and_not_answered_is_sent_again_unless_that_could_do_harm() {
    bounded(|| {
        each(|row, choice, reconnect| {
            for moment in [Moment::BreakBefore, Moment::BreakAfter] {
                let (disk, client, _folder) = disk(reconnect.clone());
                disk.plan(row.call(), moment, 1);
                let result = row.run(&client);
                let fails = row == Row::Resize || row.is_change() && choice == "sends once";
                match result {
                    Ok(()) if !fails => assert_eq!(disk.calls(row.call()), 2, "{row:?}, {choice}"),
                    Err(Error::Lost { sent: true, .. }) if fails => {
                        assert_eq!(disk.calls(row.call()), 1, "{row:?}, {choice}");
                    }
                    result => panic!("{row:?}, {choice}, {moment:?}: {result:?}"),
                }
            }
        });
    });
}

#[test]
fn what_a_server_answers_by_its_shutdown_is_sent_again_but_for_a_resize() {
    bounded(|| {
        each(|row, choice, reconnect| {
            for moment in [Moment::ShutDownBefore, Moment::ShutDownAfter] {
                let (disk, client, _folder) = disk(reconnect.clone());
                disk.plan(row.call(), moment, 1);
                match row.run(&client) {
                    Ok(()) if row != Row::Resize => {
                        assert_eq!(disk.calls(row.call()), 2, "{row:?}, {choice}");
                    }
                    Err(Error::Command { .. }) if row == Row::Resize => {
                        assert_eq!(disk.calls(row.call()), 1, "{choice}");
                    }
                    result => panic!("{row:?}, {choice}, {moment:?}: {result:?}"),
                }
            }
        });
    });
}

/// The answer does not say that nothing was carried out: a write with FUA may be whose flush failed.
#[test]
fn what_a_server_answered_by_its_shutdown_may_have_been_carried_out() {
    bounded(|| {
        each(|row, choice, reconnect| {
            if row == Row::Resize {
                return;
            }
            let (disk, client, _folder) = disk(reconnect.with_max_attempts(Some(1)));
            disk.plan(row.call(), Moment::ShutDownAfter, 1);
            disk.breaker().refuse();
            let error = row.run(&client).unwrap_err();
            let Error::Lost { sent, reason: LostReason::GaveUp(GaveUp::Attempts { .. }), .. } =
                error
            else {
                panic!("{row:?}, {choice}: {error}");
            };
            assert!(sent, "{row:?}, {choice}");
        });
    });
}

#[test]
fn a_request_is_sent_again_a_bounded_number_of_times() {
    bounded(|| {
        for row in Row::all().filter(|row| *row != Row::Resize) {
            for moment in [Moment::BreakBefore, Moment::ShutDownBefore] {
                let (disk, client, _folder) = disk(reconnect().with_max_resends(3));
                disk.plan(row.call(), moment, u32::MAX);
                let error = row.run(&client).unwrap_err();
                assert!(matches!(error, Error::Lost { sent: true, .. }), "{row:?}: {error}");
                assert_eq!(disk.calls(row.call()), 4, "{row:?}, {moment:?}");
                disk.plan(row.call(), moment, 0);
                client.read(MARK, 512, Flags::empty()).unwrap();
            }
        }
    });
}

#[test]
fn a_request_whose_caller_has_given_it_up_is_not_sent_again() {
    bounded(|| {
        each(|row, choice, reconnect| {
            let (disk, client, _folder) = disk(reconnect);
            disk.plan(row.call(), Moment::BreakBefore, 1);
            let Some(pending) = row.submit(&client) else { return };
            client.send_submitted();
            wait_until("the connection is broken", SOON, || disk.calls(row.call()) == 1);
            drop(pending);
            client.read(MARK, 512, Flags::empty()).unwrap();
            assert_eq!(disk.calls(row.call()), 1, "{row:?}, {choice}");
        });
    });
}

#[test]
fn a_request_that_was_given_up_before_it_was_sent_is_never_sent() {
    bounded(|| {
        each(|row, choice, reconnect| {
            let (disk, client, _folder) = disk(reconnect);
            disk.plan("marked", Moment::BreakBefore, 1);
            let first = client.submit_read(MARK, 512, Flags::empty());
            let Some(pending) = row.submit(&client) else { return };
            client.send_submitted();
            wait_until("the connection is broken", SOON, || disk.calls("marked") == 1);
            drop(pending);
            first.wait().unwrap();
            client.read(MARK, 512, Flags::empty()).unwrap();
            assert_eq!(disk.calls(row.call()), 0, "{row:?}, {choice}");
        });
    });
}

/// A crash of the server after a change was acknowledged, before it was flushed.
#[test]
fn an_acknowledged_change_is_durable_kept_or_in_doubt() {
    bounded(|| {
        for row in Row::changes() {
            let Row::Change(what, flags) = row else { continue };
            for (choice, reconnect) in choices() {
                let (disk, client, _folder) = disk(reconnect);
                row.run(&client).unwrap();
                disk.plan(row.call(), Moment::BreakBefore, 0);
                disk.crash();
                let is_durable = flags == Flags::FUA;
                // Before any flush: what is kept was written again before anything else was sent.
                let is_there = is_durable || choice == "keeps";
                let expected = if is_there { what.after() } else { BEFORE };
                assert_eq!(found(&client), [expected; LENGTH as usize], "{row:?}, {choice}");
                let resent = usize::from(is_there && !is_durable);
                assert_eq!(disk.calls(row.call()), resent, "{row:?}, {choice}");
                match client.flush() {
                    Ok(()) if is_there => {}
                    Err(Error::InDoubt { requests: 1, bytes: LENGTH, .. }) if !is_there => {}
                    result => panic!("{row:?}, {choice}: {result:?}"),
                }
                client.flush().unwrap();
                disk.crash();
                assert_eq!(found(&client), [expected; LENGTH as usize], "{row:?}, {choice}");
            }
        }
    });
}

#[test]
fn a_flushed_change_stays_and_is_not_written_again() {
    bounded(|| {
        for row in Row::changes() {
            let Row::Change(what, _) = row else { continue };
            for (choice, reconnect) in choices() {
                let (disk, client, _folder) = disk(reconnect);
                row.run(&client).unwrap();
                client.flush().unwrap();
                disk.plan(row.call(), Moment::BreakBefore, 0);
                disk.crash();
                assert_eq!(found(&client), [what.after(); LENGTH as usize], "{row:?}, {choice}");
                client.flush().unwrap();
                assert_eq!(disk.calls(row.call()), 0, "{row:?}, {choice}");
            }
        }
    });
}

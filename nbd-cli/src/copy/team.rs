//! The threads of a copy. The first begins at once; further ones join as their connections come about, and no byte waits for
//! them: a server may have none to spare, and let us wait for one without a word. Those that are being made when all is
//! over get a moment, so that servers see them end in order.

use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nbd_blocking::Client;
use nbd_blocking::client::{BlockSize, ClientConfig, Error, TransmissionFlags, Uri};

use super::error::CopyError;
use super::worker::{Destination, Source};

/// Where one thread reads and writes.
pub(super) type Ends = (Source, Destination);

/// Connections of one more thread, to those sides that are servers.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) source: Option<Client>,
    pub(super) destination: Option<Client>,
}

impl Pair {
    /// Without connections, for sides that need none.
    const NONE: Self = Self { source: None, destination: None };

    /// Connections to the sides that need one; `None` if there is to be no further thread. Those that are made meanwhile are
    /// shown as `unused`.
    fn connect(
        makers: &(Option<Maker>, Option<Maker>),
        unused: &Unused,
    ) -> Result<Option<Self>, Error> {
        let mut pair = Self::NONE;
        match pair.fill(makers, unused) {
            Ok(true) => Ok(Some(pair)),
            other => {
                pair.disconnect();
                other.map(|_| None)
            }
        }
    }

    /// Whether all of them could be made.
    fn fill(
        &mut self,
        makers: &(Option<Maker>, Option<Maker>),
        unused: &Unused,
    ) -> Result<bool, Error> {
        for (maker, client) in [(&makers.0, &mut self.source), (&makers.1, &mut self.destination)] {
            let Some(maker) = maker else { continue };
            *client = maker.connect()?;
            let Some(client) = client else { return Ok(false) };
            unused.lock().unwrap_or_else(PoisonError::into_inner).push(client.clone());
        }
        Ok(true)
    }

    /// Disconnects from the servers.
    pub(super) fn disconnect(&self) {
        [&self.source, &self.destination].into_iter().flatten().for_each(Client::disconnect);
    }
}

/// How to make one more connection to a server.
#[derive(Debug)]
pub(super) struct Maker {
    uri: Uri,
    config: ClientConfig,
    /// The facts of the first connection: further ones must be to the same export.
    facts: Facts,
}

type Facts = (u64, BlockSize, TransmissionFlags);

fn facts(client: &Client) -> Facts {
    (client.size(), client.export().block_size(), client.export().flags())
}

impl Maker {
    /// Further connections like `first`.
    pub(super) fn new(uri: Uri, config: ClientConfig, first: &Client) -> Self {
        Self { uri, config, facts: facts(first) }
    }

    /// One more connection; `None` if the export is not the same any more.
    fn connect(&self) -> Result<Option<Client>, Error> {
        let client = Client::connect_with(&self.uri, &self.config)?;
        if facts(&client) == self.facts {
            return Ok(Some(client));
        }
        client.disconnect();
        Ok(None)
    }
}

/// A command to the threads of a copy.
enum News {
    Joins(Pair),
    Over,
}

/// Has no further threads join once it is dropped: a fault of ours that unwinds must end the copy, too.
struct Over<'a>(&'a Sender<News>);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let _told = self.0.send(News::Over);
    }
}

/// Connections of a pair that is not whole yet.
type Unused = Mutex<Vec<Client>>;

/// A thread that makes connections.
struct Making {
    /// Has it make no more.
    over: Arc<AtomicBool>,
    unused: Arc<Unused>,
    /// Hangs up when it has ended.
    ended: Receiver<Infallible>,
}

impl Making {
    /// How long one that is being made may take when there is no use for it any more. Then the process ends under it.
    const LIMIT: Duration = Duration::from_secs(1);
}

/// Where further threads come from.
pub(super) struct Team {
    sender: Sender<News>,
    news: Receiver<News>,
    making: Option<Making>,
    pairs: Vec<Pair>,
}

impl Team {
    /// So many further threads, for sides that need no connections.
    fn of(count: usize) -> Self {
        let (sender, news) = mpsc::channel();
        let pairs = (0..count).map(|_| Pair::NONE).collect();
        Self { sender, news, making: None, pairs }
    }

    /// Up to `count` further threads, for which there is no connection yet to those sides that are servers.
    pub(super) fn to_be_made(count: usize, makers: (Option<Maker>, Option<Maker>)) -> Self {
        if let (None, None) = makers {
            return Self::of(count);
        }
        let mut team = Self::of(0);
        if count == 0 {
            return team;
        }
        let sender = team.sender.clone();
        let (over, unused) = (Arc::new(AtomicBool::new(false)), Arc::new(Unused::default()));
        let (ending, ended) = mpsc::channel();
        team.making = Some(Making { over: Arc::clone(&over), unused: Arc::clone(&unused), ended });
        let make = move || {
            let _ending: Sender<Infallible> = ending;
            for made in 1..=count {
                if over.load(Ordering::Acquire) {
                    return;
                }
                let pair = match Pair::connect(&makers, &unused) {
                    Ok(Some(pair)) => pair,
                    Ok(None) => return,
                    Err(error) => {
                        tracing::info!(%error, connections = made, "no more connections");
                        return;
                    }
                };
                if over.load(Ordering::Acquire) {
                    return pair.disconnect();
                }
                unused.lock().unwrap_or_else(PoisonError::into_inner).clear();
                if sender.send(News::Joins(pair)).is_err() {
                    return;
                }
            }
        };
        // Without it the copy has one connection.
        let _started = thread::Builder::new().name("nbd-connect".into()).spawn(make);
        team
    }

    /// Works at the first ends on this thread, and at further ones, which may come about meanwhile. Gives the error that is
    /// nearest to the beginning. Can be called again, for more work.
    pub(super) fn work(
        &mut self,
        first: Ends,
        ends: impl Fn(&Pair) -> Option<Ends> + Sync,
        work: impl Fn(Ends) -> Result<(), CopyError> + Sync,
    ) -> Result<(), CopyError> {
        let Self { sender, news, pairs, .. } = self;
        let (ends, work) = (&ends, &work);
        thread::scope(|scope| {
            let others = scope.spawn(move || {
                let at_work = |pair: &Pair| {
                    Some(scope.spawn({
                        let ends = ends(pair)?;
                        move || work(ends)
                    }))
                };
                let mut threads: Vec<_> = pairs.iter().filter_map(at_work).collect();
                while let Ok(News::Joins(pair)) = news.recv() {
                    threads.extend(at_work(&pair));
                    pairs.push(pair);
                }
                threads.into_iter().map(joined).collect::<Vec<_>>()
            });
            let over = Over(sender);
            let own = work(first);
            drop(over);
            let errors = std::iter::once(own).chain(joined(others)).filter_map(Result::err);
            let first = errors.reduce(|one, other| one.first(Some(other)));
            first.map_or(Ok(()), Err)
        })
    }

    /// The further connections to the destination.
    pub(super) fn destinations(&self) -> impl Iterator<Item = &Client> {
        self.pairs.iter().filter_map(|pair| pair.destination.as_ref())
    }

    /// Disconnects from the servers, first by these connections, and waits a moment for one that is being made: where the
    /// server has no room for it, there is some now.
    pub(super) fn leave<'a>(self, first: impl IntoIterator<Item = &'a Client>) {
        let Self { news, making, pairs, .. } = self;
        if let Some(making) = &making {
            making.over.store(true, Ordering::Release);
        }
        first.into_iter().for_each(Client::disconnect);
        pairs.iter().for_each(Pair::disconnect);
        let Some(Making { unused, ended, .. }) = making else { return };
        let _ended = ended.recv_timeout(Making::LIMIT);
        for news in news.try_iter() {
            if let News::Joins(pair) = news {
                pair.disconnect();
            }
        }
        let unused = core::mem::take(&mut *unused.lock().unwrap_or_else(PoisonError::into_inner));
        unused.iter().for_each(Client::disconnect);
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use nbd_testkit::raw::{BlockSize as Sizes, Mode, flag};
    use nbd_testkit::scripted::{Export, Script, ScriptedServer};

    use super::*;

    /// It would wait for further threads for ever.
    #[test]
    fn a_fault_in_the_first_thread_ends_the_copy() {
        const LIMIT: Duration = Duration::from_secs(60);
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || {
            let mut team = Team::of(1);
            let work = |_| -> Result<(), CopyError> { panic!("a fault, made by a test") };
            let first = (Source::Stream, Destination::Nowhere);
            let working = AssertUnwindSafe(|| team.work(first, |_| None, work));
            let _received = sender.send(catch_unwind(working).is_err());
        });
        assert_eq!(ended.recv_timeout(LIMIT), Ok(true), "it unwinds");
    }

    #[test]
    fn a_further_connection_is_one_to_the_same_export_or_none() {
        let export = Export::new(Mode::Extended);
        let change = |change: fn(&mut Export)| {
            let mut other = export.clone();
            change(&mut other);
            other
        };
        let others = [
            (export.clone(), true),
            (change(|other| other.size /= 2), false),
            (change(|other| other.flags &= !flag::SEND_TRIM), false),
            (
                change(|other| {
                    let sizes = Sizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
                    other.block_size = Some(sizes);
                }),
                false,
            ),
        ];
        for (other, is_same) in others {
            let server = ScriptedServer::unix(
                [export.clone(), other].map(|export| Script::new(export).enter().serve()),
            );
            let uri: Uri = server.endpoint().uri("").parse().unwrap();
            let first = Client::connect_with(&uri, &ClientConfig::new()).unwrap();
            let further = Maker::new(uri, ClientConfig::new(), &first).connect().unwrap();
            assert_eq!(further.is_some(), is_same);
            drop((first, further));
            server.finish();
        }
    }
}

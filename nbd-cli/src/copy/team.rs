//! The threads of a copy. The first begins at once; further ones join as their connections come about, and a copy never
//! waits for them: a server may have none to spare, and let us wait for one without a word. Those that are being made when
//! the copy is over get a moment, so that the server sees them end in order.

use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
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

    /// Connections to the sides that need one; `None` if there is to be no further thread.
    fn connect(makers: &(Option<Maker>, Option<Maker>)) -> Result<Option<Self>, Error> {
        let mut pair = Self::NONE;
        match pair.fill(makers) {
            Ok(true) => Ok(Some(pair)),
            other => {
                pair.disconnect();
                other.map(|_| None)
            }
        }
    }

    /// Whether all of them could be made.
    fn fill(&mut self, makers: &(Option<Maker>, Option<Maker>)) -> Result<bool, Error> {
        for (maker, client) in [(&makers.0, &mut self.source), (&makers.1, &mut self.destination)] {
            let Some(maker) = maker else { continue };
            *client = maker.connect()?;
            if client.is_none() {
                return Ok(false);
            }
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

/// A thread that makes connections.
struct Making {
    /// Has it make no more.
    over: Arc<AtomicBool>,
    /// Hangs up when it has ended.
    ended: Receiver<Infallible>,
}

impl Making {
    /// How long one that is being made may take when there is no use for it any more. Then the process ends under it.
    const LIMIT: Duration = Duration::from_secs(1);

    /// Waits for its end.
    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        let _ended = self.ended.recv_timeout(Self::LIMIT);
    }
}

/// Where further threads come from.
pub(super) struct Team {
    sender: Sender<News>,
    news: Receiver<News>,
    making: Option<Making>,
}

impl Team {
    /// Further threads, each with a pair of connections.
    pub(super) fn of(pairs: impl IntoIterator<Item = Pair>) -> Self {
        let (sender, news) = mpsc::channel();
        for pair in pairs {
            let _taken = sender.send(News::Joins(pair));
        }
        Self { sender, news, making: None }
    }

    /// Up to `count` further threads, for which there is no connection yet to those sides that are servers.
    pub(super) fn to_be_made(count: usize, makers: (Option<Maker>, Option<Maker>)) -> Self {
        if let (None, None) = makers {
            return Self::of((0..count).map(|_| Pair::NONE));
        }
        let mut team = Self::of([]);
        if count == 0 {
            return team;
        }
        let sender = team.sender.clone();
        let over = Arc::new(AtomicBool::new(false));
        let (ending, ended) = mpsc::channel();
        team.making = Some(Making { over: Arc::clone(&over), ended });
        let make = move || {
            let _ending: Sender<Infallible> = ending;
            for made in 1..=count {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let pair = match Pair::connect(&makers) {
                    Ok(Some(pair)) => pair,
                    Ok(None) => return,
                    Err(error) => {
                        tracing::info!(%error, connections = made, "no more connections");
                        return;
                    }
                };
                // When all is done it is not received any more.
                if let Err(mpsc::SendError(News::Joins(pair))) = sender.send(News::Joins(pair)) {
                    return pair.disconnect();
                }
            }
        };
        // Nobody waits for it. Without it the copy has one connection.
        let _started = thread::Builder::new().name("nbd-connect".into()).spawn(make);
        team
    }

    /// Works at the first ends on this thread, and at further ones as they come about. Gives their connections, some of
    /// which may have come too late for any work, and the error that is nearest to the beginning.
    pub(super) fn work(
        self,
        first: Ends,
        ends: impl Fn(&Pair) -> Option<Ends> + Sync,
        work: impl Fn(Ends) -> Result<(), CopyError> + Sync,
    ) -> (Vec<Pair>, Result<(), CopyError>) {
        let Self { sender, news, making } = self;
        let (ends, work) = (&ends, &work);
        thread::scope(|scope| {
            let others = scope.spawn(move || {
                let (mut pairs, mut threads) = (Vec::new(), Vec::new());
                while let Ok(News::Joins(pair)) = news.recv() {
                    let ends = ends(&pair);
                    pairs.push(pair);
                    let Some(ends) = ends else { continue };
                    threads.push(scope.spawn(move || work(ends)));
                }
                let ended = threads.into_iter().map(joined).collect::<Vec<_>>();
                (pairs, ended, news)
            });
            let over = Over(&sender);
            let own = work(first);
            drop(over);
            let (mut pairs, ended, news) = joined(others);
            if let Some(making) = making {
                making.end();
            }
            pairs.extend(news.try_iter().filter_map(|news| match news {
                News::Joins(pair) => Some(pair),
                News::Over => None,
            }));
            let errors = std::iter::once(own).chain(ended).filter_map(Result::err);
            let first = errors.reduce(|one, other| one.first(Some(other)));
            (pairs, first.map_or(Ok(()), Err))
        })
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
            let team = Team::of([Pair::NONE]);
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

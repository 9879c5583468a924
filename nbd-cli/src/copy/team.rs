//! The threads of a copy. The first begins at once; further ones join as their connections come about, and a copy never
//! waits for them: a server may have none to spare, and let us wait for one without a word.

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
        for (maker, client) in [(&makers.0, &mut pair.source), (&makers.1, &mut pair.destination)] {
            let Some(maker) = maker else { continue };
            let Some(connected) = maker.connect()? else { return Ok(None) };
            *client = Some(connected);
        }
        Ok(Some(pair))
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
        Ok((facts(&client) == self.facts).then_some(client))
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

/// Where further threads come from.
pub(super) struct Team {
    sender: Sender<News>,
    news: Receiver<News>,
}

impl Team {
    /// Further threads, each with a pair of connections.
    pub(super) fn of(pairs: impl IntoIterator<Item = Pair>) -> Self {
        let (sender, news) = mpsc::channel();
        for pair in pairs {
            let _taken = sender.send(News::Joins(pair));
        }
        Self { sender, news }
    }

    /// Up to `count` further threads, for which there is no connection yet to those sides that are servers.
    pub(super) fn to_be_made(count: usize, makers: (Option<Maker>, Option<Maker>)) -> Self {
        if let (None, None) = makers {
            return Self::of((0..count).map(|_| Pair::NONE));
        }
        let team = Self::of([]);
        if count == 0 {
            return team;
        }
        let sender = team.sender.clone();
        let make = move || {
            for made in 1..=count {
                let pair = match Pair::connect(&makers) {
                    Ok(Some(pair)) => pair,
                    Ok(None) => return,
                    Err(error) => {
                        tracing::info!(%error, connections = made, "no more connections");
                        return;
                    }
                };
                // When all is done it is not received any more.
                if sender.send(News::Joins(pair)).is_err() {
                    return;
                }
            }
        };
        // Nobody waits for it. Without it the copy has one connection.
        let _started = thread::Builder::new().name("nbd-connect".into()).spawn(make);
        team
    }

    /// Works at the first ends on this thread, and at further ones as they come about. Gives their connections, and the
    /// error that is nearest to the beginning.
    pub(super) fn work(
        self,
        first: Ends,
        ends: impl Fn(&Pair) -> Option<Ends> + Sync,
        work: impl Fn(Ends) -> Result<(), CopyError> + Sync,
    ) -> (Vec<Pair>, Result<(), CopyError>) {
        let Self { sender, news } = self;
        let (ends, work) = (&ends, &work);
        thread::scope(|scope| {
            let others = scope.spawn(move || {
                let (mut pairs, mut threads) = (Vec::new(), Vec::new());
                while let Ok(News::Joins(pair)) = news.recv() {
                    let Some(ends) = ends(&pair) else { continue };
                    pairs.push(pair);
                    threads.push(scope.spawn(move || work(ends)));
                }
                let ended = threads.into_iter().map(joined).collect::<Vec<_>>();
                (pairs, ended)
            });
            let over = Over(&sender);
            let own = work(first);
            drop(over);
            let (pairs, ended) = joined(others);
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

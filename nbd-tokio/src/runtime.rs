//! Tasks and time, as the engine asks for them.

use std::pin::pin;
use std::task::Context;
use std::time::{Duration, Instant};

use nbd_engine::{BoxFuture, Runtime};
use tokio::runtime::Handle;

/// A tokio runtime: the one that a server or a client was made on.
#[derive(Clone, Debug)]
pub struct Tokio(pub(crate) Handle);

impl Runtime for Tokio {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        Box::pin(tokio::time::sleep(duration))
    }

    fn now(&self) -> Instant {
        // Stands still with tokio's clock when a test pauses that.
        tokio::time::Instant::now().into_std()
    }

    fn yield_now(&self, cx: &mut Context<'_>) {
        // Unlike a wake, it has tokio look at its sockets before it polls the task again.
        let _pending = pin!(tokio::task::yield_now()).poll(cx);
    }

    fn spawn(&self, task: BoxFuture) {
        // Tasks run on their own; nobody waits for the handle.
        drop(self.0.spawn(task));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::task::Poll;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    /// By default tokio looks at its sockets once in 61 polls as long as tasks are ready: a client would wait for as
    /// many turns of others.
    #[test]
    fn a_socket_is_looked_at_between_the_turns_of_busy_tasks() {
        const TASKS: u32 = 4;
        const MAX_TURNS: u32 = 4 * TASKS;

        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let tokio = Tokio(runtime.handle().clone());
        let (turns, end) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        for _ in 0..TASKS {
            let (turns, end, yielding) = (Arc::clone(&turns), Arc::clone(&end), tokio.clone());
            tokio.spawn(Box::pin(std::future::poll_fn(move |cx| {
                if end.load(Ordering::Relaxed) {
                    return Poll::Ready(());
                }
                turns.fetch_add(1, Ordering::Relaxed);
                yielding.yield_now(cx);
                Poll::Pending
            })));
        }
        // On the only worker, so that each turn between the write and the read is one that the reader waited for.
        let waited = runtime.spawn(async move {
            let (mut client, server) = StdUnixStream::pair().unwrap();
            server.set_nonblocking(true).unwrap();
            let mut server = UnixStream::from_std(server).unwrap();
            let mut waited = Vec::new();
            for _ in 0..50 {
                let writes = {
                    let turns = &turns;
                    let client = &mut client;
                    async move {
                        // The reader has found nothing and sleeps.
                        client.write_all(b"x").unwrap();
                        turns.load(Ordering::Relaxed)
                    }
                };
                let mut byte = [0];
                let (read, before) = tokio::join!(biased; server.read_exact(&mut byte), writes);
                read.unwrap();
                waited.push(turns.load(Ordering::Relaxed) - before);
            }
            end.store(true, Ordering::Relaxed);
            waited
        });
        let waited = runtime.block_on(waited).unwrap();
        let worst = waited.iter().max();
        assert!(worst <= Some(&MAX_TURNS), "{waited:?}");
    }
}

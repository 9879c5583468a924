//! HTTP as stores are spoken to: what a server sends besides objects is bounded, and so is the time of a request, by its
//! length.

use core::future::Future as _;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::io;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http_body::{Body, Frame, SizeHint};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};
use object_store::{ClientOptions, Result};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

/// How long a request, and then its reply, may take, apart from the time for its bytes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes a second that a connection carries at least: a table is sent in parts of 10 MiB, and the log in as much as was
/// written, which no fixed time would do for.
const MIN_RATE: u64 = 128 << 10;

/// Bytes of a reply that is no object. A list of a thousand names, each as long as names can be, has about 2 MiB.
const MAX_REPLY: u64 = 16 << 20;

/// Bytes of the text that comes with a failure: only a few hundred characters of it are ever shown.
const MAX_TEXT: usize = 64 << 10;

/// Connects as the library does by itself. That takes the text of a failure into memory as a whole, however long it is.
#[derive(Debug, Default)]
pub(crate) struct Bounded;

impl HttpConnector for Bounded {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(BoundedService(client)))
    }
}

#[derive(Debug)]
struct BoundedService(HttpClient);

#[async_trait::async_trait]
impl HttpService for BoundedService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let began = Instant::now();
        let max = max_reply(request.method().as_str(), request.uri().query());
        let sent = request.body().content_length() as u64;
        let answer = timeout_at(began + allowance(sent), self.0.execute(request)).await;
        let response = answer.map_err(|_| too_slow())??;
        let (head, body) = response.into_parts();
        let body = Paced::new(body, max);
        if head.status.is_success() {
            return Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)));
        }
        let text = beginning(HttpResponseBody::new(body).bytes_stream()).await?;
        Ok(HttpResponse::from_parts(head, text.into()))
    }
}

/// Bytes that the reply to a request may have. That of an object may have any number: its reader knows how many it wants.
fn max_reply(method: &str, query: Option<&str>) -> u64 {
    // As S3, Google and Azure call it.
    let lists = |query: &str| query.contains("list-type=") || query.contains("comp=list");
    match method {
        "GET" if !query.is_some_and(lists) => u64::MAX,
        _ => MAX_REPLY,
    }
}

/// How long a peer may take for so many bytes.
fn allowance(bytes: u64) -> Duration {
    PATIENCE + Duration::from_secs(bytes / MIN_RATE)
}

fn too_slow() -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, io::Error::from(io::ErrorKind::TimedOut))
}

/// The body of a reply, which has to come at the least rate and is not endless.
#[derive(Debug)]
struct Paced {
    body: HttpResponseBody,
    began: Instant,
    received: u64,
    max: u64,
    /// Until the next bytes have to be there.
    sleep: Pin<Box<Sleep>>,
}

impl Paced {
    fn new(body: HttpResponseBody, max: u64) -> Self {
        let began = Instant::now();
        let sleep = Box::pin(sleep_until(began + allowance(0)));
        Self { body, began, received: 0, max, sleep }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            if let Some(Ok(frame)) = &frame {
                this.received += frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            return Poll::Ready(match this.received > this.max {
                true => Some(Err(HttpError::new(HttpErrorKind::Decode, TooLong(this.max)))),
                false => frame,
            });
        }
        let deadline = this.began + allowance(this.received);
        if this.sleep.deadline() != deadline {
            this.sleep.as_mut().reset(deadline);
        }
        this.sleep.as_mut().poll(context).map(|()| Some(Err(too_slow())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the server's reply is longer than {0} bytes")]
struct TooLong(u64);

/// The beginning of a text. What is behind it is not received.
async fn beginning<E>(
    mut chunks: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<String, E> {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_TEXT
        && let Some(chunk) = chunks.next().await
    {
        let chunk = chunk?;
        bytes.extend_from_slice(&chunk[..chunk.len().min(MAX_TEXT - bytes.len())]);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use core::convert::Infallible;

    use futures_util::stream;
    use nbd_testkit::cases;

    use super::*;

    /// A body that sends chunks, one after each pause.
    struct Slow(Vec<(u64, usize)>, Pin<Box<Sleep>>);

    impl Slow {
        fn new(mut chunks: Vec<(u64, usize)>) -> Self {
            chunks.reverse();
            let first = chunks.last().map_or(0, |chunk| chunk.0);
            Self(chunks, Box::pin(tokio::time::sleep(Duration::from_millis(first))))
        }
    }

    impl Body for Slow {
        type Data = Bytes;
        type Error = HttpError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
            core::task::ready!(self.1.as_mut().poll(context));
            let Some((_, length)) = self.0.pop() else { return Poll::Ready(None) };
            if let Some((pause, _)) = self.0.last() {
                let next = Instant::now() + Duration::from_millis(*pause);
                self.1.as_mut().reset(next);
            }
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![0; length])))))
        }
    }

    #[test]
    fn a_reply_may_take_as_long_as_its_bytes_do_and_no_longer() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        cases(200, |random| {
            let count = 1 + random.below(20);
            let chunks = (0..count).map(|_| {
                let pause = random.below(40_000) >> random.below(8);
                (pause, random.below(1 << 20) as usize)
            });
            let chunks = Vec::from_iter(chunks);
            let (mut elapsed, mut received, mut expected) = (0, 0, Ok(()));
            for (pause, length) in &chunks {
                elapsed += pause;
                // Sleeps last until the next millisecond, so that both outcomes are right around the limit.
                let limit = allowance(received).as_millis() as u64;
                if elapsed.abs_diff(limit) <= count {
                    return;
                }
                if elapsed > limit {
                    expected = Err(HttpErrorKind::Timeout);
                    break;
                }
                received += *length as u64;
            }
            runtime.block_on(async {
                let body = Paced::new(HttpResponseBody::new(Slow::new(chunks)), u64::MAX);
                let outcome = HttpResponseBody::new(body).bytes().await;
                match (outcome, expected) {
                    (Ok(bytes), Ok(())) => assert_eq!(bytes.len() as u64, received),
                    (Err(error), Err(kind)) => {
                        assert_eq!(format!("{:?}", error.kind()), format!("{kind:?}"));
                    }
                    (outcome, expected) => panic!("{outcome:?} instead of {expected:?}"),
                }
            });
        });
    }

    #[test]
    fn replies_that_are_no_objects_are_bounded() {
        for (method, query, bounded) in [
            ("GET", None, false),
            ("GET", Some("versionId=3"), false),
            ("GET", Some("list-type=2&prefix=a"), true),
            ("GET", Some("restype=container&comp=list"), true),
            ("PUT", None, true),
            ("POST", Some("delete"), true),
            ("DELETE", None, true),
        ] {
            assert_eq!(max_reply(method, query) == MAX_REPLY, bounded, "{method} {query:?}");
        }
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        cases(50, |random| {
            let max = random.below(1000);
            let chunks = Vec::from_iter((0..10).map(|_| (0, random.below(200) as usize)));
            let sent = chunks.iter().map(|chunk| chunk.1 as u64).sum::<u64>();
            runtime.block_on(async {
                let body = Paced::new(HttpResponseBody::new(Slow::new(chunks)), max);
                let outcome = HttpResponseBody::new(body).bytes().await;
                assert_eq!(outcome.is_ok(), sent <= max, "{sent} of {max}: {outcome:?}");
            });
        });
    }

    #[test]
    fn no_more_is_received_than_is_of_use() {
        cases(50, |random| {
            let chunk = 1 + random.below(2 * MAX_TEXT as u64) as usize;
            let (mut sent, length) = (0, random.below(3 * MAX_TEXT as u64) as usize);
            let chunks = stream::iter(core::iter::from_fn(|| {
                let next = chunk.min(length - sent);
                sent += next;
                (next > 0).then(|| Ok::<_, Infallible>(Bytes::from(vec![b'x'; next])))
            }));
            let text = futures_util::FutureExt::now_or_never(beginning(chunks));
            assert_eq!(text.unwrap().unwrap().len(), length.min(MAX_TEXT));
            assert!(sent < MAX_TEXT + chunk, "{sent} bytes were received");
        });
    }
}

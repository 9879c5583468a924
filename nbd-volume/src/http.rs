//! HTTP as stores are spoken to: what a server sends besides objects is bounded.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::{ClientOptions, Result};

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
        let response = self.0.execute(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let text = beginning(body.bytes_stream()).await?;
        Ok(HttpResponse::from_parts(head, text.into()))
    }
}

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

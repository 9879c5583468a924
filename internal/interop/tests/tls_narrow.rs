//! Streams that take a few bytes at a time, or hold them back until they are flushed: inside of TLS and as they are, both
//! sides take every end for what it is.

use std::time::Duration;

use nbd_interop::certificates::Certificates;
use nbd_testkit::{Pattern, assert_same_bytes, cases};
use nbd_tokio::client::{ClientConfig, Flags, Negotiation};
use nbd_tokio::export::{ExportMap, Memory};
use nbd_tokio::tls::{ClientCertificates, ClientTlsMode, ServerTlsMode, TlsClient, TlsServer};
use nbd_tokio::{Client, Server, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, BufStream, duplex};
use tokio::runtime;
use tokio::time::timeout;

/// The longest that anything may take that should happen by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Before the client has entered an export.
    Aborted,
    /// The client waits for it.
    Disconnected,
    Dropped,
    /// While replies are yet to come.
    DroppedInFlight,
    /// The server shuts down.
    ShutDown,
}

const ALL: [End; 5] =
    [End::Aborted, End::Disconnected, End::Dropped, End::DroppedInFlight, End::ShutDown];

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn visit(server: &Server, stream: impl Stream + 'static, config: &ClientConfig, end: End) {
    if let End::Aborted = end {
        let mut negotiation = Negotiation::over(stream, config).await.expect("it speaks NBD");
        assert_eq!(negotiation.list().await.expect("a list").len(), 1);
        return negotiation.abort().await.expect("the server takes note");
    }
    let client = Client::over(stream, "disk", config).await.expect("it is there");
    let data = Pattern(1).bytes(0, 500);
    client.write_all_at(&data, 77).await.expect("there is room");
    let mut read = vec![0; data.len()];
    client.read_at(&mut read, 77).await.expect("it was written");
    assert_same_bytes(&read, &data, "what was written");
    match end {
        End::Disconnected => client.disconnect().await,
        End::DroppedInFlight => {
            let _unread = [0, 600].map(|offset| client.submit_read(offset, 600, Flags::empty()));
            tokio::task::yield_now().await;
        }
        End::ShutDown => {
            server.shut_down();
            let error = client.read_at(&mut read, 77).await.expect_err("the server is gone");
            assert!(!error.to_string().contains("close_notify"), "{error}");
        }
        End::Dropped | End::Aborted => {}
    }
}

#[test]
fn narrow_streams_end_in_order() {
    let certificates = Certificates::new();
    let server_tls = TlsServer::from_directory(certificates.path(), ClientCertificates::Required)
        .expect("good certificates");
    let client_tls = TlsClient::builder().directory(certificates.path()).host_name("localhost");
    let client_tls = client_tls.build().expect("good certificates");
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    cases(120, |random| {
        let (mut config, mut serving) = (ClientConfig::new(), ServerConfig::new());
        let is_tls = random.below(4) > 0;
        if is_tls {
            config = config.with_tls(ClientTlsMode::Required, client_tls.clone());
            serving = serving.with_tls(ServerTlsMode::Required, server_tls.clone());
        }
        let disk = Memory::new(1 << 20).expect("there is memory");
        let exports = ExportMap::new().with("disk", disk).expect("a good name");
        let server = Server::with_config(exports, serving);
        let widest = random.of(&[4, 64, 2000]);
        let capacity = 1 + random.below(widest) as usize;
        let (end, buffers) = (random.of(&ALL), [random.one_in(3), random.one_in(3)]);
        let of_server = runtime.block_on(async {
            let (near, far) = duplex(capacity);
            let serving = server.clone();
            let served = tokio::spawn(async move {
                match buffers[0] {
                    true => serving.serve_stream(BufStream::new(near)).await,
                    false => serving.serve_stream(near).await,
                }
            });
            timeout(PATIENCE, async {
                match buffers[1] {
                    true => visit(&server, BufStream::new(far), &config, end).await,
                    false => visit(&server, far, &config, end).await,
                }
                served.await.expect("it does not panic")
            })
            .await
        });
        let case = format!("{end:?}, TLS {is_tls}, {capacity} bytes, buffers {buffers:?}");
        match of_server {
            Ok(of_server) => of_server.unwrap_or_else(|error| panic!("{case}: {error}")),
            Err(_) => panic!("{case}: it hangs"),
        }
    });
}

//! When an idle client gives up its place to another one, in virtual time.

use std::future::Future;
use std::time::Duration;

use nbd_testkit::{Random, cases};
use nbd_tokio::client::{ClientConfig, Error, Flags};
use nbd_tokio::export::{ExportMap, Memory};
use nbd_tokio::{Client, Server, ServerConfig};
use tokio::io::duplex;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

fn in_virtual_time<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(future)
}

/// A server for two clients.
fn server(idle: Duration) -> Server {
    let exports = ExportMap::new().with("", Memory::new(1 << 20).unwrap()).unwrap();
    let config = ServerConfig::new().with_max_connections(2).with_idle_timeout(Some(idle));
    Server::with_config(exports, config)
}

async fn connect(server: &Server) -> Result<Client, Error> {
    let (ours, theirs) = duplex(4096);
    let server = server.clone();
    tokio::spawn(async move { server.serve_stream(ours).await });
    Client::over(theirs, "", &ClientConfig::new()).await
}

async fn is_there(client: &Client) -> bool {
    client.read(0, 512, Flags::empty()).await.is_ok()
}

fn up_to(random: &mut Random, limit: Duration) -> Duration {
    Duration::from_millis(random.below(limit.as_millis() as u64))
}

#[test]
fn who_has_long_been_idle_makes_room_for_the_first_who_finds_none() {
    cases(50, |random| {
        in_virtual_time(async {
            let idle = SECOND + up_to(random, 100 * SECOND);
            let server = server(idle);
            let first = connect(&server).await.unwrap();
            sleep(up_to(random, 2 * idle)).await;
            assert!(is_there(&first).await);
            let second = connect(&server).await.unwrap();
            // However long they are idle, and whenever the server has last looked at them.
            sleep(idle + 2 * SECOND + up_to(random, 10 * idle)).await;
            let third = connect(&server).await.expect("one of the others makes room");
            assert!(is_there(&third).await);
            let staying = [is_there(&first).await, is_there(&second).await];
            assert_eq!(staying.into_iter().filter(|stays| *stays).count(), 1, "{staying:?}");
        });
    });
}

/// A client that has gone away again without a place costs nobody one later.
#[test]
fn who_found_no_room_while_all_were_busy_has_nobody_disconnected_later() {
    cases(20, |random| {
        in_virtual_time(async {
            let idle = 5 * SECOND + up_to(random, 60 * SECOND);
            let server = server(idle);
            let clients = [connect(&server).await.unwrap(), connect(&server).await.unwrap()];
            let refused = async {
                sleep(up_to(random, idle)).await;
                connect(&server).await.map(drop).expect_err("there is no room")
            };
            let busy = async {
                // For longer than the other one waits.
                for _ in 0..2 * (idle.as_secs() + 4) {
                    for client in &clients {
                        assert!(is_there(client).await);
                    }
                    sleep(SECOND / 2).await;
                }
            };
            tokio::join!(refused, busy);
            sleep(5 * idle).await;
            for client in &clients {
                assert!(is_there(client).await);
            }
        });
    });
}

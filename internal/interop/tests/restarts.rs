//! The client of each runtime against `nbd serve` that is killed and started again, with and without TLS. The disk is in
//! memory, so that each kill loses everything: what is there afterwards is what the client had kept. (It flushes after it has
//! written that again, and such a disk makes nothing durable: so each round looks at its own bytes, and there is one
//! connection, since another one that is replaced late would flush what the next round is about.)

use std::process::Command;
use std::time::Duration;

use nbd_engine::client::{ClientConfig, Flags, Reconnect, Uri};
use nbd_interop::certificates::Certificates;
use nbd_testkit::Pattern;
use nbd_testkit::process::Background;
use nbd_testkit::server::nbd_binary;

const PATIENCE: Duration = Duration::from_secs(60);
const RESTARTS: u64 = 3;
/// Bytes that are written between two kills.
const STEP: usize = 100_000;

/// Where one process after the other listens.
struct Site {
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    running: Option<Background>,
}

impl Site {
    fn new(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        let mut site = Self { folder, arguments, running: None };
        site.start();
        site
    }

    fn socket(&self) -> String {
        self.folder.path().join("nbd.sock").display().to_string()
    }

    fn start(&mut self) {
        let mut command = Command::new(nbd_binary());
        command.args(["serve", "-U", &self.socket()]).args(&self.arguments).arg("memory:1M");
        let server = Background::spawn(&mut command).expect("nbd starts");
        assert!(server.next_line(PATIENCE).is_some(), "{}", server.stderr());
        self.running = Some(server);
    }

    fn restart(&mut self) {
        let mut server = self.running.take().expect("it runs");
        server.kill();
        assert!(server.wait_exit(PATIENCE).is_some(), "it is killed");
        self.start();
    }
}

fn config() -> ClientConfig {
    let reconnect = Reconnect::new()
        .with_delays(Duration::from_millis(1), Duration::from_millis(50))
        .with_kept_writes(16 << 20);
    ClientConfig::new().with_reconnect(reconnect)
}

/// Writes, kills, and reads.
macro_rules! survives {
    ($client:ty, $uri:expr, $site:expr, $tls:expr) => {
        async {
            let uri: Uri = $uri.parse().expect("a URI");
            let client = <$client>::connect_with(&uri, &config()).await.expect("it serves");
            assert_eq!(client.export().is_tls(), $tls);
            for round in 0..RESTARTS {
                let data = Pattern(round).bytes(0, STEP);
                client.write(round * STEP as u64, data, Flags::empty()).await.expect("a write");
                $site.restart();
                let read = client.read(round * STEP as u64, STEP, Flags::empty());
                let found = read.await.expect("a read");
                assert!(found == Pattern(round).bytes(0, STEP), "what was written in {round}");
            }
            client.disconnect().await;
        }
    };
}

/// Each runtime's client, one after the other.
fn all_survive(uri: &dyn Fn(&Site) -> String, arguments: &[&str], tls: bool) {
    let mut site = Site::new(arguments);
    let tokio = tokio::runtime::Runtime::new().expect("threads");
    let place = uri(&site);
    tokio.block_on(survives!(nbd_tokio::Client, place, site, tls));
    smol::block_on(survives!(nbd_async_std::Client, place, site, tls));
    smol::block_on(survives!(nbd_async_std::smol::Client, place, site, tls));

    let parsed: Uri = place.parse().expect("a URI");
    let client = nbd_blocking::Client::connect_with(&parsed, &config()).expect("it serves");
    assert_eq!(client.export().is_tls(), tls);
    for round in 0..RESTARTS {
        let data = Pattern(round).bytes(0, STEP);
        client.write(round * STEP as u64, data, Flags::empty()).expect("a write");
        site.restart();
        let found = client.read(round * STEP as u64, STEP, Flags::empty()).expect("a read");
        assert!(found == Pattern(round).bytes(0, STEP), "what was written in {round}");
    }
    client.disconnect();
}

#[test]
fn clients_survive_servers_that_are_killed() {
    all_survive(&|site| format!("nbd+unix:///?socket={}", site.socket()), &[], false);
}

#[test]
fn clients_survive_servers_that_are_killed_over_tls() {
    let certificates = Certificates::new();
    let uri = |site: &Site| {
        let (socket, folder) = (site.socket(), certificates.path());
        format!("nbds+unix:///?socket={socket}&tls-certificates={folder}&tls-hostname=localhost")
    };
    all_survive(&uri, &["--tls", "require", "--tls-certificates", certificates.path()], true);
}

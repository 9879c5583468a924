//! nbd-server, the reference, with our clients: the libraries on threads and on tokio, and the command.
//!
//! It has simple replies alone, no metadata contexts, and tells no size before an export is entered.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nbd_engine::client::{ClientConfig, Error, Flags};
use nbd_interop::MIB;
use nbd_suite::client::{ClientAdapter, ClientUnderTest, NegotiationUnderTest};
use nbd_suite::clients::{BlockingClient, TokioClientCurrentThread, TokioClientMultiThread};
use nbd_testkit::peers::{PeerServer, require};
use nbd_testkit::process::{Finished, run};
use nbd_testkit::server::nbd_binary;
use nbd_testkit::{Pattern, assert_same_bytes, assert_zero};
use tempfile::TempDir;

const SIZE: usize = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// A server of `disk` and of the read-only `image`, whose content is a pattern, in files of those names.
struct Served {
    server: PeerServer,
    dir: TempDir,
}

impl Served {
    fn start() -> Option<Self> {
        let peer = require("nbd-server")?;
        let dir = TempDir::new().expect("a folder for the disks");
        let file = |name: &str| dir.path().join(name);
        fs::write(file("disk"), vec![0; SIZE]).expect("the folder is ours");
        fs::write(file("image"), Pattern(1).bytes(0, SIZE)).expect("the folder is ours");
        let exports = format!(
            "[disk]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n\
             [image]\nexportname = {}\nreadonly = true\n",
            file("disk").display(),
            file("image").display()
        );
        Some(Self { server: PeerServer::nbd_server(&peer, &exports), dir })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn uri(&self, export: &str) -> String {
        self.server.endpoint().uri(export)
    }

    fn connect(
        &self,
        client: &dyn ClientAdapter,
        export: &str,
        config: &ClientConfig,
    ) -> Result<Box<dyn ClientUnderTest>, Error> {
        client.connect(&self.uri(export).parse().expect("a URI"), config)
    }

    fn negotiate(&self, client: &dyn ClientAdapter) -> Box<dyn NegotiationUnderTest> {
        let uri = self.uri("").parse().expect("a URI");
        client.negotiate(&uri, &ClientConfig::default()).expect("it is there")
    }

    /// Runs our command.
    fn nbd(&self, args: &[&str]) -> Finished {
        run(Command::new(nbd_binary()).args(args), PATIENCE)
    }
}

fn every_command_that_it_has_works(client: &dyn ClientAdapter) {
    let Some(served) = Served::start() else { return };
    let config = ClientConfig::new().with_connections(3).with_contexts(["base:allocation"]);
    let client = served.connect(client, "disk", &config).expect("it is there");
    let export = client.export();
    assert_eq!(export.size(), SIZE as u64);
    assert!(export.can_flush() && export.can_fua() && export.can_trim());
    assert!(!export.is_structured() && !export.is_extended() && export.contexts().is_empty());
    assert_eq!(client.connections(), 3, "it says that several connections see the same");

    let data = Pattern(2).bytes(0, 3 << 20);
    client.write(4096, data.to_vec(), Flags::FUA).expect("a write");
    let parts: Vec<_> = (0..48)
        .map(|at| {
            (at << 16, client.start_read(4096 + (at << 16), vec![0; 1 << 16], Flags::empty()))
        })
        .collect();
    for (at, part) in parts {
        let (found, result) = part.wait();
        result.expect("a read");
        assert_same_bytes(&found, &data[at as usize..][..1 << 16], "what was written");
    }
    client.flush().expect("a flush");
    let on_disk = fs::read(served.file("disk")).expect("it is a file");
    assert_same_bytes(&on_disk[4096..][..data.len()], &data, "the file");
    client.trim(MIB, MIB, Flags::empty()).expect("a trim");
    client.write_zeroes(2 * MIB, 4096, Flags::FUA).expect("zeroes");
    assert_zero(&client.read(2 * MIB, 4096, Flags::empty()).expect("a read"), "zeroes");
    let status = client.block_status(0, MIB, Flags::empty());
    assert!(matches!(status, Err(Error::Invalid(_))), "{status:?}");
    client.disconnect();
}

fn a_read_only_export_is_not_written(client: &dyn ClientAdapter) {
    let Some(served) = Served::start() else { return };
    let client = served.connect(client, "image", &ClientConfig::default()).expect("it is there");
    assert!(client.export().is_read_only());
    let found = client.read(0, SIZE, Flags::empty()).expect("a read");
    assert_same_bytes(&found, &Pattern(1).bytes(0, SIZE), "the image");
    assert!(matches!(client.write_all_at(&[0; 512], 0), Err(Error::Invalid(_))));
    client.disconnect();
}

fn exports_are_listed_and_unknown_ones_refused(client: &dyn ClientAdapter) {
    let Some(served) = Served::start() else { return };
    let refused = served.connect(client, "nothing", &ClientConfig::default());
    let error = refused.err().expect("there is no such export");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");

    let mut negotiation = served.negotiate(client);
    assert!(!negotiation.is_structured());
    let listed = negotiation.list().expect("a list");
    let names: Vec<_> = listed.iter().map(|listing| &*listing.name).collect();
    assert_eq!(names, ["disk", "image"]);
    assert!(matches!(negotiation.info("nothing"), Err(Error::Refused { .. })));
    negotiation.info("image").expect("it is there");
    negotiation.abort().expect("it listens");
}

macro_rules! with_each_client {
    ($($module:ident $client:ident)*) => {
        $(mod $module {
            use super::$client;

            #[test]
            fn every_command_that_it_has_works() {
                super::every_command_that_it_has_works(&$client);
            }

            #[test]
            fn a_read_only_export_is_not_written() {
                super::a_read_only_export_is_not_written(&$client);
            }

            #[test]
            fn exports_are_listed_and_unknown_ones_refused() {
                super::exports_are_listed_and_unknown_ones_refused(&$client);
            }
        })*
    };
}

with_each_client! {
    blocking BlockingClient
    tokio_current_thread TokioClientCurrentThread
    tokio_multi_thread TokioClientMultiThread
}

#[test]
fn info_and_list_tell_what_there_is() {
    let Some(served) = Served::start() else { return };
    assert_eq!(served.nbd(&["info", "--size", &served.uri("disk")]).success(), "8388608\n");
    let info = served.nbd(&["info", &served.uri("image")]).success();
    for expected in ["newstyle-fixed", "simple packets", "is_read_only: true"] {
        assert!(info.contains(expected), "{expected:?} is not in:\n{info}");
    }
    let list = served.nbd(&["list", "--json", &served.uri("")]).success();
    for expected in ["\"disk\"", "\"image\"", "\"structured\": false"] {
        assert!(list.contains(expected), "{expected:?} is not in:\n{list}");
    }
    let failure = served.nbd(&["info", &served.uri("nothing")]).failure();
    assert!(failure.contains("\"nothing\"") && failure.contains("with nbd list "), "{failure}");
}

#[test]
fn copies_in_and_out_are_identical() {
    let Some(served) = Served::start() else { return };
    let (image, disk) = (served.uri("image"), served.uri("disk"));
    let out = served.file("out");
    let out_path = out.to_str().expect("a temporary path is text");
    served.nbd(&["copy", &image, out_path]).success();
    assert_same_bytes(
        &fs::read(&out).expect("it was copied"),
        &Pattern(1).bytes(0, SIZE),
        "the copy",
    );
    // Holes in the middle, which are not sent to this server as holes.
    let sparse = fs::OpenOptions::new().write(true).open(&out).expect("it is ours");
    sparse.write_all_at(&vec![0; 2 << 20], MIB).expect("it is ours");
    served.nbd(&["copy", "--flush", out_path, &disk]).success();
    let found = fs::read(served.file("disk")).expect("it is a file");
    assert_same_bytes(&found, &fs::read(&out).expect("it is ours"), "the disk");
    served.nbd(&["copy", &image, &disk]).success();
    let found = fs::read(served.file("disk")).expect("it is a file");
    assert_same_bytes(&found, &Pattern(1).bytes(0, SIZE), "from one export to the other");
    let failure = served.nbd(&["copy", out_path, &image]).failure();
    assert!(failure.contains("read-only"), "{failure}");
}

//! What lies behind the plain bytes: chunks of reads, and the status of ranges.

use nbd_engine::client::{Chunk, ClientConfig, Error, Flags};
use nbd_engine::export::Memory;

use crate::{ClientSetup, Setup};

const SIZE: u64 = 4 << 20;
const ALLOCATION: &str = "base:allocation";

/// Data of 64 KiB at these offsets, holes around them.
const DATA: [u64; 3] = [0, 1 << 20, SIZE - (64 << 10)];
const LENGTH: u64 = 64 << 10;

fn config(structured: bool, extended: bool) -> ClientConfig {
    let config = ClientConfig::new().with_contexts([ALLOCATION]);
    config.with_structured_replies(structured).with_extended_headers(extended)
}

/// A read that is shown in chunks accounts for each byte once, in order, holes apart from data where the server sends
/// them so; and in one chunk where it can't be otherwise, or is not to be.
pub fn reads_show_data_and_holes(clients: ClientSetup, servers: Setup) {
    let server = servers.serve(Memory::new(SIZE).expect("it is small"));
    for (structured, extended) in [(false, false), (true, false), (true, true)] {
        let client = clients.connect(server.endpoint(), &config(structured, extended));
        let client = client.expect("the server is there");
        for offset in DATA {
            client.write_all_at(&[7; LENGTH as usize], offset).expect("a write");
        }
        let chunks = client.read_chunks(0, SIZE as usize, Flags::empty()).expect("a read");
        let (mut end, mut data, mut holes) = (0, 0, 0);
        for chunk in &chunks {
            assert_eq!(chunk.offset(), Some(end), "{structured} {extended}");
            match chunk {
                Chunk::Data { data: bytes, .. } => {
                    end += bytes.len() as u64;
                    data += bytes.iter().filter(|byte| **byte == 7).count() as u64;
                }
                Chunk::Hole { length, .. } => {
                    end += length;
                    holes += length;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((end, data), (SIZE, 3 * LENGTH), "{structured} {extended}");
        assert_eq!(holes > 0, structured, "holes are seen where the server can send them");
        if structured {
            let one = client.read_chunks(0, 2 << 20, Flags::DF).expect("a read");
            assert_eq!(one.len(), 1, "{one:?}");
        }
        assert_eq!(client.read_chunks(5, 0, Flags::empty()).expect("nothing is asked"), []);
        let outside = client.read_chunks(SIZE, 1, Flags::empty());
        assert!(matches!(outside, Err(Error::Invalid(_))), "{outside:?}");
        client.disconnect();
    }
    server.stop();
}

/// The runs of a range follow each other from its first byte to its last, whatever the answers and the size of the
/// questions.
pub fn the_status_of_a_range_is_reported_run_by_run(clients: ClientSetup, servers: Setup) {
    let server = servers.serve(Memory::new(SIZE).expect("it is small"));
    for extended in [false, true] {
        let client = clients.connect(server.endpoint(), &config(true, extended));
        let client = client.expect("the server is there");
        for offset in DATA {
            client.write_all_at(&[7; LENGTH as usize], offset).expect("a write");
        }
        for window in [1, 4096, 100_000, 1 << 20, u64::MAX] {
            let runs = client.block_status_range(ALLOCATION, 100, SIZE - 200, window);
            let runs: Vec<_> = runs
                .expect("a walk")
                .iter()
                .map(|run| (run.offset, run.length, run.status))
                .collect();
            let expected = [
                (100, LENGTH - 100, 0),
                (LENGTH, (1 << 20) - LENGTH, 3),
                (1 << 20, LENGTH, 0),
                ((1 << 20) + LENGTH, SIZE - (1 << 20) - 2 * LENGTH, 3),
                (SIZE - LENGTH, LENGTH - 100, 0),
            ];
            assert_eq!(runs, expected, "{extended}, {window} bytes at a time");
        }
        let nothing = client.block_status_range(ALLOCATION, 5, 0, 1).expect("nothing is asked");
        assert_eq!(nothing, []);
        let outside = client.block_status_range(ALLOCATION, 1, SIZE, 1 << 20);
        assert!(matches!(outside, Err(Error::Invalid(_))), "{outside:?}");
        let other = client.block_status_range("none:such", 0, SIZE, SIZE);
        let Err(error @ Error::NoStatus { selected: false, .. }) = other else {
            panic!("{other:?}");
        };
        assert!(error.to_string().ends_with("select it on connecting"), "{error}");
        client.disconnect();
    }
    server.stop();
}

//! What servers answer.

use nbd_testkit::raw::{ChunkType, Errno};

use crate::client::manual::{Called, SECOND, Said};
use crate::client::{Chunk, ClientConfig, Flags};

#[test]
fn contexts_are_found_by_their_names_whatever_number_a_connection_gives_them() {
    let net = Called::new(Said { contexts: vec!["a:x", "b:y"], ..Said::default() });
    let config = ClientConfig::new().with_contexts(["a:x", "b:y"]).with_reconnect(net.reconnect());
    let client = net.connect(&config);
    for (index, first) in [1, 2, 40].into_iter().enumerate() {
        let mut status = client.submit_block_status(0, 8192, Flags::empty());
        assert!(net.poll(&mut status).is_pending());
        net.line(index, |line| {
            let request = line.only();
            for (context, length, is_last) in [(first, 512u32, false), (first + 1, 4096, true)] {
                line.chunk(&request, ChunkType::BLOCK_STATUS, is_last, |chunk| {
                    for number in [context, length, 0] {
                        chunk.extend(number.to_be_bytes());
                    }
                });
            }
        });
        let found = net.now(status).unwrap();
        let found: Vec<_> =
            found.iter().map(|found| (&*found.context, found.extents[0].length)).collect();
        assert_eq!(found, [("a:x", 512), ("b:y", 4096)]);
        // The next server has other numbers.
        let next = [2, 40, 1][index];
        net.say(|said| said.first_context = next);
        net.line(index, |line| line.cut());
        let mut read = client.submit_trim(0, 512, Flags::empty());
        assert!(net.poll(&mut read).is_pending());
        net.pass(SECOND);
        assert!(net.poll(&mut read).is_pending());
        net.line(index + 1, |line| assert_eq!(line.answer_all(), 1));
        net.now(read).unwrap();
    }
}

#[test]
fn each_error_inside_of_a_read_is_shown_where_it_is() {
    let net = Called::new(Said::default());
    let client = net.connect(&ClientConfig::new());
    let mut read = client.submit_read_chunks(0, 2048, Flags::empty());
    assert!(net.poll(&mut read).is_pending());
    net.line(0, |line| {
        let request = line.only();
        for offset in [0u64, 512, 1024, 1536] {
            let is_last = offset == 1536;
            match offset % 1024 {
                0 => line.chunk(&request, ChunkType::OFFSET_DATA, is_last, |chunk| {
                    chunk.extend(offset.to_be_bytes());
                    chunk.extend([7; 512]);
                }),
                _ => line.chunk(&request, ChunkType::ERROR_OFFSET, is_last, |chunk| {
                    chunk.extend(Errno::EIO.0.to_be_bytes());
                    chunk.extend(0u16.to_be_bytes());
                    chunk.extend(offset.to_be_bytes());
                }),
            }
        }
    });
    let chunks = net.now(read).unwrap();
    let shown: Vec<_> =
        chunks.iter().map(|chunk| (chunk.offset(), matches!(chunk, Chunk::Error(_)))).collect();
    let expected = [(0, false), (512, true), (1024, false), (1536, true)];
    assert_eq!(shown, expected.map(|(offset, is_error)| (Some(offset), is_error)));
}

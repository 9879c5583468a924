//! A client that reads four bytes, and the server that answers it.

use alloc::vec::Vec;

use nbd_proto::server::{Config, Connection, Event};
use nbd_proto::wire::{CommandFlags, CommandType, CompactRequest, OptionCode, OptionHeader};
use nbd_proto::{Command, ExportInfo, OrderlyEnd, Segment};

const DISK: &[u8; 16] = b"no-standard-lib!";

/// `None` when anything is not as it should be.
pub(crate) fn run() -> Option<()> {
    let bytes = client();
    let mut input = &bytes[..];
    let mut sent = Vec::new();
    let mut connection = Connection::new(Config::default());
    // A dozen turns are enough; a machine that gets stuck must not hang a test.
    for _ in 0..64 {
        match connection.next_event(&mut input) {
            Some(Event::Lookup(_)) => {
                connection.answer_lookup(Ok(&ExportInfo::new(DISK.len() as u64))).ok()?;
            }
            Some(Event::Request { id, command: Command::Read { offset: 3, length: 4, .. } }) => {
                let mut reply = connection.reply(id).ok()?;
                reply.data(3, 4).ok()?;
                reply.finish().ok()?;
            }
            Some(Event::Closed(Ok(OrderlyEnd::Disconnected))) => {
                return sent.ends_with(DISK.get(3..7)?).then_some(());
            }
            Some(_) => return None,
            None => {
                let segment = connection.segments().next()?;
                match segment {
                    Segment::Control(bytes) => sent.extend_from_slice(bytes),
                    // The one read in flight begins at byte 3.
                    Segment::Body { offset, length, .. } => {
                        let from = usize::try_from(offset).ok()?.checked_add(3)?;
                        sent.extend_from_slice(DISK.get(from..from.checked_add(length)?)?);
                    }
                }
                connection.transmitted(segment.len()).ok()?.for_each(drop);
            }
        }
    }
    None
}

/// What the client sends: its flags, the choice of the default export, a read, and its farewell.
fn client() -> Vec<u8> {
    let request = |command, offset, length| {
        let flags = CommandFlags::empty();
        CompactRequest { flags, command, cookie: 1, offset, length }.encode()
    };
    let mut bytes = Vec::from([0, 0, 0, 3]);
    bytes.extend(OptionHeader { code: OptionCode::EXPORT_NAME, length: 0 }.encode());
    bytes.extend(request(CommandType::READ, 3, 4));
    bytes.extend(request(CommandType::DISC, 0, 0));
    bytes
}

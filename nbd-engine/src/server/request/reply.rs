//! From what an export gave to the reply.

use nbd_proto::server::Connection;
use nbd_proto::{Misuse, RequestId};

use crate::export::{Body, Piece};
use crate::server::status::Status;

/// Turns the pieces of a body into content: neighbours that are data become one chunk.
pub(super) fn read(
    connection: &mut Connection,
    id: RequestId,
    offset: u64,
    body: &Body,
) -> Result<(), Misuse> {
    let mut reply = connection.reply(id)?;
    let (mut position, mut data) = (offset, 0);
    for piece in body.pieces().iter().filter(|piece| !piece.is_empty()) {
        let length = piece.len() as u64;
        if !matches!(piece, Piece::Hole(_)) {
            data += length;
            continue;
        }
        if data > 0 {
            reply.data(position, data)?;
            position += core::mem::take(&mut data);
        }
        reply.hole(position, length)?;
        position += length;
    }
    if data > 0 {
        reply.data(position, data)?;
    }
    reply.finish()
}

/// Reports the extents of each context.
pub(super) fn status(
    connection: &mut Connection,
    id: RequestId,
    found: &Status,
) -> Result<(), Misuse> {
    let mut reply = connection.reply(id)?;
    for (context, extents) in found.answers() {
        reply.extents(context, extents)?;
    }
    reply.finish()
}

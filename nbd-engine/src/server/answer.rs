//! From what an export gave to the core's reply.

use nbd_proto::server::Connection;
use nbd_proto::wire::ErrorCode;
use nbd_proto::{Misuse, RequestId};

use super::status::Status;
use crate::export::{Body, Piece};

/// Tells the extents of each context.
pub(super) fn status(
    connection: &mut Connection,
    id: RequestId,
    offset: u64,
    found: &Status,
) -> Result<(), Misuse> {
    let cut_off = connection.export().is_none_or(|export| export.size <= offset);
    let mut reply = connection.reply(id)?;
    if cut_off {
        // By a resize, since it was asked for.
        reply.error(ErrorCode::EINVAL, "the range is not inside of the export");
        return Ok(());
    }
    for (context, extents) in found.answers() {
        reply.extents(context, extents.iter().copied())?;
    }
    reply.finish()
}

/// Turns the pieces of a body into content: neighbours that are data become one chunk.
pub(super) fn read(
    connection: &mut Connection,
    id: RequestId,
    offset: u64,
    body: &Body,
) -> Result<(), Misuse> {
    let mut reply = connection.reply(id)?;
    let mut at = offset;
    let mut data = 0_u32;
    for piece in body.pieces().iter().filter(|piece| !piece.is_empty()) {
        let length = piece.len() as u32;
        if !matches!(piece, Piece::Hole(_)) {
            data += length;
            continue;
        }
        if data > 0 {
            reply.data(at, data)?;
            at += u64::from(data);
            data = 0;
        }
        reply.hole(at, length)?;
        at += u64::from(length);
    }
    if data > 0 {
        reply.data(at, data)?;
    }
    reply.finish()
}

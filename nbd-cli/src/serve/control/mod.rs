//! `--control`: a socket by which this user's other programs look at the server and change it while it runs.
//!
//! A client sends a request and gets its answer (see [`protocol`]), which comes once it is carried out. Each client has a
//! thread, so that none delays another one. To add a verb, write a file beside [`bitmaps`] whose function adds it to
//! [`Verbs`], and call that where the server starts.

mod bitmaps;
mod clients;
mod end;
mod exports;
mod protocol;
mod status;
mod take_over;
mod verbs;

pub(crate) use bitmaps::{CLEAR, LIST, Named, START, STOP};
pub(crate) use exports::{ADD as EXPORT_ADD, Name as ExportName, RELOAD, REMOVE as EXPORT_REMOVE};
pub(crate) use protocol::{Answer, MAX_ANSWER, Request, receive, send};
pub(crate) use status::{Client, DISCONNECT, Disconnect, Export, STATUS, Status};

pub(super) use bitmaps::Bitmaps;
pub(super) use clients::{answer, bind};
pub(super) use exports::exports;
pub(super) use status::verbs as status_verbs;
pub(super) use take_over::{
    HAND_OVER, Linger, Replaceable, SERVING, TAKE_BACK, TAKE_OVER, TakeOver, receive_with,
};
pub(super) use verbs::Verbs;

//! The client's machine against servers that are odd, wrong or malicious, made by hand, byte by byte.

mod any_bytes;
mod lifecycle;
mod negotiation;
mod options;
mod peer;
mod replies;
mod requests;
mod status;

//! The server's machine against clients that are odd, clumsy or malicious, made by hand, byte by byte.

mod any_session;
mod contexts;
mod hang_up;
mod negotiation;
mod peer;
mod replies;
mod requests;
mod resized;

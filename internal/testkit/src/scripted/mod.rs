//! A server that plays a script, however wrong.
//!
//! A [`Script`] is what a server does on one connection, as data: send, receive an option or a request and answer it,
//! fall silent, repeat without end, close. What a script does not care about is done properly, by the [`Export`] that
//! it pretends to have, so that each script is as long as the fault that it is about:
//!
//! ```no_run
//! use nbd_testkit::raw::{Cmd, Mode};
//! use nbd_testkit::scripted::{Answer, Export, Script, ScriptedServer};
//!
//! // The second half of what was read does not come.
//! let script = Script::new(Export::new(Mode::Structured))
//!     .enter()
//!     .request(Cmd::READ)
//!     .answer(Answer::data(0, &[5; 512]).done())
//!     .serve();
//! let server = ScriptedServer::unix([script]);
//! // ... a client reads 1024 bytes at `server.endpoint()` ...
//! let reports = server.finish();
//! assert!(reports[0].left, "the client went before the server did");
//! ```
//!
//! A client that does something else than what the script expects fails the test, by a panic in
//! [`finish`](ScriptedServer::finish); one that hangs up is only [reported](Report). Nothing waits without a bound.

mod answer;
mod export;
mod play;
mod script;
mod server;

pub use answer::{Answer, OptionAnswer, payload};
pub use export::Export;
pub use script::Script;
pub use server::{Report, ScriptedServer};

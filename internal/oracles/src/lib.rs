//! What others said on the wire, and what must hold whatever anybody says there.
//!
//! [`transcript`] holds recorded sessions between programs of others; the files are in `transcripts/`, the program
//! `record` makes them. [`session`] and [`digest`] take them apart with the codec alone, and [`replay`] runs them again
//! with our machine in the place of either side.
//!
//! [`oracle`] holds the properties that any bytes must keep, as functions of bytes. The fuzz targets in `fuzz/` call
//! them; the tests run them on [`seeds`], which are cut from the transcripts. The ends of nbd-pair drive
//! the machines for both purposes.
//!
//! The crate's tests also compare `docs/conformance.md` with the requirements and with the tests that there are.
#![forbid(unsafe_code)]

pub mod choices;
pub mod digest;
pub mod oracle;
pub mod replay;
pub mod seeds;
pub mod session;
pub mod transcript;

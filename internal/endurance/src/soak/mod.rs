//! Servers under load for many minutes, while clients come, go and die: what they use has to stay flat.
//!
//! Each runtime has two servers. The *steady* one runs from the beginning to the end: fio verifies a file on it while
//! visitors do what clients do that are clumsy, hostile or killed. The *restarted* one is
//! ended every few seconds, gently or not, behind clients that reconnect.

mod clients;
mod measure;
mod run;
mod site;
mod visitors;

pub use measure::{MARGINS, Sample, Series, Verdict};
pub use run::{Options, Report, run};

//! `nbd copy` held against nbdcopy: from servers to files and to nowhere, and from files to servers.
//!
//! Both are run as anybody would run them, without options. The images are in a memory file system,
//! so that no disk is measured, and each copy to a file is compared with its image once.

mod arguments;
mod case;
mod image;
mod report;
mod run;
#[cfg(test)]
mod tests;

pub use arguments::{CopyArgs, CopyPlan};
pub use case::{Case, Place, Tool, cases};
pub use image::{Image, make, same};
pub use report::{json, text};
pub use run::{Line, Standing, Took, run};

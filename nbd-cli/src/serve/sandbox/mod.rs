//! `nbd serve --sandbox`: gives up what a server has no more need of.
//!
//! It is entered in two steps. [`Sandbox::confine`] comes when the exports are open and before there is a second thread,
//! since landlock holds for the thread that asks for it and for those that it starts: from then on only the files of
//! [`Needs`] can be opened. [`Sandbox::seal`] comes when all sockets listen, and holds for all threads: seccomp then allows
//! the calls that serving takes, and no others, so that nothing is executed and nobody is connected to.

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
mod calls;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
mod files;
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
)))]
#[path = "elsewhere.rs"]
mod files;
mod needs;

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests;

use core::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

pub(super) use needs::Needs;

use crate::exit::Failure;

/// Whether the process is confined to its files.
static CONFINED: AtomicBool = AtomicBool::new(false);

/// Whether this process can open none but its own files any more.
pub(super) fn is_confined() -> bool {
    CONFINED.load(Ordering::Relaxed)
}

/// Whether to be confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// No
    #[default]
    Off,
    /// As far as the system can
    Try,
    /// Yes, or don't start
    Require,
}

impl Mode {
    pub(super) fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

/// A server that is confined to its files, and not yet to its calls.
#[derive(Debug)]
#[must_use = "the second step is still to come"]
pub(super) struct Sandbox {
    mode: Mode,
    /// What the rules are about stays as it is while this is there.
    files: Option<files::Confined>,
}

/// A server that is confined. Rules may refer to what this holds: it lives as long as the server.
#[derive(Debug)]
pub(super) struct Sealed(#[expect(dead_code, reason = "it is held, not used")] Sandbox);

impl Sandbox {
    /// The first step: nothing but the files of `needs` can be opened from now on.
    ///
    /// # Errors
    /// With [`Mode::Require`] if the system can't do that, or if there is another thread, which would go free.
    pub(super) fn confine(mode: Mode, needs: &Needs) -> Result<Self, Failure> {
        if mode == Mode::Off {
            return Ok(Self { mode, files: None });
        }
        let confined = files::is_single_threaded().and_then(|()| files::confine(needs));
        let files = match confined {
            Ok(confined) => {
                CONFINED.store(true, Ordering::Relaxed);
                Some(confined)
            }
            Err(reason) => {
                excuse(mode, &reason)?;
                None
            }
        };
        Ok(Self { mode, files })
    }

    /// The second step: nothing but what serving takes can be asked of the system from now on, by any thread.
    ///
    /// # Errors
    /// As for [`confine`](Self::confine).
    pub(super) fn seal(self) -> Result<Sealed, Failure> {
        if self.mode != Mode::Off {
            match calls::seal() {
                Err(reason) => excuse(self.mode, &reason)?,
                Ok(()) if self.files.is_none() => {
                    tracing::info!("confined: no program is run, no connection made");
                }
                Ok(()) => tracing::info!(
                    "confined: no other file is opened, no program run, no connection made"
                ),
            }
        }
        Ok(Sealed(self))
    }
}

#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
)))]
use files as calls;

/// What was asked for and is not there is an error, unless it was only to be tried.
fn excuse(mode: Mode, reason: &str) -> Result<(), Failure> {
    let text = format!("cannot confine the server (--sandbox): {reason}");
    if mode == Mode::Require {
        return Err(Failure::failed(format!("{text}; --sandbox=try serves all the same")));
    }
    tracing::warn!("{text}; serving without (--sandbox=try)");
    Ok(())
}

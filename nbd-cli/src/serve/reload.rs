//! Changes to what a running server is: its configuration file is read again, or exports are added and removed.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_engine::server::ServerConfig;

use super::config::{self, Config, Export, LogLevel};
use super::live::{Changes, Live};
use super::security::Security;
use crate::exit::Failure;

/// Changes a running server.
#[derive(Debug)]
pub(super) struct Reload {
    /// The configuration file, if there is one.
    file: Option<PathBuf>,
    /// What the command line asks to be logged besides.
    log: LogLevel,
    /// What is in force.
    config: Mutex<Config>,
    live: Live,
    security: Security,
}

impl Reload {
    pub(super) fn new(
        file: Option<PathBuf>,
        log: LogLevel,
        config: Config,
        live: Live,
        security: Security,
    ) -> Self {
        Self { file, log, config: Mutex::new(config), live, security }
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What SIGHUP means where no terminal controls the process: to read the configuration file again, or the files for
    /// TLS if there is none. Gives whether there is anything to read.
    pub(super) fn hang_up(&self) -> bool {
        let read = match self.file {
            Some(_) => self.read_again().map(|_| true),
            None => self.security.read_again(),
        };
        read.unwrap_or_else(|failure| {
            log(&failure);
            true
        })
    }

    /// Reads the configuration file again, and the files for TLS. All of it comes into force, or nothing does.
    ///
    /// # Errors
    /// What is wrong with the file, or with what it names; or that there is none.
    pub(super) fn read_again(&self) -> Result<Changes, Failure> {
        let Some(file) = &self.file else {
            return Err(Failure::failed("the server has no configuration file (--config)"));
        };
        let mut read = config::load(file)?;
        read.server.log = read.server.log.max(self.log);
        let mut config = self.config();
        for key in need_restart(&config, &read) {
            let file = file.display();
            tracing::warn!("{file}: another {key} takes a restart of the server");
        }
        let next = Config { exports: read.exports, source: read.source, ..config.clone() };
        // The rules of TLS are about the exports, too.
        Security::of(&next, ServerConfig::new())?;
        let changes = self.apply(&mut config, next)?;
        tracing::info!(?changes, "read the configuration again");
        Ok(changes)
    }

    /// Serves one more export.
    ///
    /// # Errors
    /// When there is one of that name, or it can't be opened.
    pub(super) fn add(&self, export: Export) -> Result<Changes, Failure> {
        self.change(|exports| exports.push(export))
    }

    /// Serves an export no longer, and disconnects its clients in order.
    ///
    /// # Errors
    /// When there is none of that name, or no other one.
    pub(super) fn remove(&self, name: &str) -> Result<Changes, Failure> {
        if self.config().exports.iter().all(|export| export.name != name) {
            return Err(Failure::failed(format!("there is no export '{name}'")));
        }
        self.change(|exports| exports.retain(|export| export.name != name))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Export>)) -> Result<Changes, Failure> {
        let mut config = self.config();
        // Those of a file are not where they were.
        let mut next = Config { source: config::Source::default(), ..config.clone() };
        change(&mut next.exports);
        config::check(&next)?;
        let changes = self.apply(&mut config, next)?;
        tracing::info!(?changes, "changed the exports");
        Ok(changes)
    }

    /// Opens all that is new before anything changes.
    fn apply(&self, config: &mut Config, next: Config) -> Result<Changes, Failure> {
        let prepared = self.live.prepare(&next)?;
        self.security.read_again()?;
        *config = next;
        Ok(prepared.commit())
    }
}

/// The keys that another value of comes into force only when the server starts.
fn need_restart(current: &Config, read: &Config) -> Vec<&'static str> {
    let (old, new) = (&current.server, &read.server);
    [
        (old.runtime != new.runtime, "runtime"),
        (old.max_connections != new.max_connections, "max-connections"),
        (old.idle_timeout != new.idle_timeout, "idle-timeout"),
        (old.stall_timeout != new.stall_timeout, "stall-timeout"),
        (old.drain_timeout != new.drain_timeout, "drain-timeout"),
        (old.control != new.control, "control"),
        (old.log != new.log, "log"),
        (old.oldstyle != new.oldstyle, "oldstyle"),
        (current.listeners != read.listeners, "[[listen]]"),
        (current.tls != read.tls, "[tls]"),
    ]
    .into_iter()
    .filter_map(|(differs, key)| differs.then_some(key))
    .collect()
}

/// Logs why a change was not made.
fn log(failure: &Failure) {
    match failure {
        Failure::Config(faults) => {
            faults.iter().for_each(|fault| tracing::error!("{}", fault.heading));
        }
        failure => tracing::error!("{}", failure.text()),
    }
    tracing::error!("nothing was changed: the settings that were read before stay in force");
}

//! Changes to what a running server is: its configuration file is read again, or exports are added and removed.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_engine::server::ServerConfig;

use super::config::{self, Config, Export, LogLevel, Server};
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
        if self.config().exports.iter().all(|export| export.label() != name) {
            return Err(Failure::failed(format!("there is no export '{name}'")));
        }
        self.change(|exports| exports.retain(|export| export.label() != name))
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

/// The keys of a table whose values differ. It names all fields, so that none that is new is forgotten.
macro_rules! differing {
    ($table:ident { $($field:ident),* $(,)? }, $old:expr, $new:expr) => {{
        let ($table { $($field),* }, new) = ($old, $new);
        let differ = [$((stringify!($field), *$field != new.$field)),*];
        let differ = differ.into_iter().filter(|(_, differs)| *differs);
        differ.map(|(field, _)| field.replace("_", "-"))
    }};
}

/// The keys that another value of comes into force only when the server starts.
fn need_restart(current: &Config, read: &Config) -> Vec<String> {
    let server = differing!(
        Server {
            runtime,
            max_connections,
            idle_timeout,
            stall_timeout,
            drain_timeout,
            control,
            metrics,
            log,
            sandbox,
            oldstyle,
        },
        &current.server,
        &read.server
    );
    // The others are in force at once, or not of the file.
    let config = differing!(Config { server, listeners, tls, exports, source }, current, read);
    let tables = config.filter_map(|table| match &*table {
        "listeners" => Some("[[listen]]".to_owned()),
        "tls" => Some("[tls]".to_owned()),
        _ => None,
    });
    server.chain(tables).collect()
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

#[cfg(test)]
mod tests {
    use super::super::config::{Listen, TcpAddress};
    use super::*;

    #[test]
    fn what_takes_a_restart_is_named_by_its_key() {
        let current = Config::default();
        assert!(need_restart(&current, &current).is_empty());
        let mut read = current.clone();
        read.server.max_connections += 1;
        read.server.log = LogLevel::Debug;
        read.exports.push(Export::default());
        assert_eq!(need_restart(&current, &read), ["max-connections", "log"]);
        let address = TcpAddress { host: "::1".into(), port: 1 };
        read = Config { listeners: vec![Listen::tcp(address)], ..current.clone() };
        assert_eq!(need_restart(&current, &read), ["[[listen]]"]);
        read.tls.verify_peer = true;
        assert_eq!(need_restart(&current, &read), ["[[listen]]", "[tls]"]);
    }
}

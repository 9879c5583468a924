//! Changes to what a running server is: its configuration file is read again, or exports are added and removed.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nbd_engine::server::ServerConfig;

use super::claims;
use super::config::{self, Config, Export, LogLevel, Server};
use super::listeners::{Listeners, can_follow};
use super::live::{Changes, HandedOver, Live};
use super::run::server_config;
use super::security::Security;
use super::supervisor::Supervisor;
use super::volumes::Place;
use crate::exit::Failure;

/// Changes a running server.
pub(super) struct Reload {
    /// The configuration file, if there is one.
    file: Option<PathBuf>,
    /// What the command line asks to be logged besides.
    log: LogLevel,
    /// What is in force.
    config: Mutex<Config>,
    /// What has places of its own besides.
    run: claims::Run,
    live: Live,
    security: Mutex<Security>,
    /// Gives the server another configuration, once it serves.
    reconfigure: OnceLock<Box<Reconfigure>>,
    /// What it listens on, from then on.
    listeners: OnceLock<Listeners>,
}

/// Bytes of stack of the thread that opens volumes.
const STACK: usize = 4 << 20;

type Reconfigure = dyn Fn(ServerConfig) + Send + Sync;

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Reload {
    pub(super) fn new(
        file: Option<PathBuf>,
        log: LogLevel,
        config: Config,
        run: claims::Run,
        live: Live,
        security: Security,
    ) -> Self {
        let (config, security) = (Mutex::new(config), Mutex::new(security));
        let (reconfigure, listeners) = (OnceLock::new(), OnceLock::new());
        Self { file, log, config, run, live, security, reconfigure, listeners }
    }

    /// What gives the server that serves from now on another configuration. The first one counts.
    pub(super) fn serving(&self, reconfigure: impl Fn(ServerConfig) + Send + Sync + 'static) {
        let _first = self.reconfigure.set(Box::new(reconfigure));
    }

    /// What the server listens on, once all of it is open. The first one counts.
    pub(super) fn listening(&self, listeners: Listeners) {
        let _first = self.listeners.set(listeners);
    }

    fn security(&self) -> MutexGuard<'_, Security> {
        self.security.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What SIGHUP means where no terminal controls the process: to read the configuration file again, or the files for
    /// TLS if there is none. Gives whether there is anything to read.
    pub(super) fn hang_up(&self, supervisor: &Supervisor) -> bool {
        let has_files = self.file.is_some() || self.security().has_files();
        if has_files {
            supervisor.around_reload(|| {
                let read = match self.file {
                    Some(_) => self.read_again().map(drop),
                    None => self.security().read_again(),
                };
                if let Err(failure) = read {
                    log(&failure);
                }
            });
        }
        has_files
    }

    /// What `nbd reload` asks for: [`read_again`](Self::read_again), whose failure the log has as well.
    ///
    /// # Errors
    /// The same.
    pub(super) fn requested(&self) -> Result<Changes, Failure> {
        self.read_again().inspect_err(|failure| {
            if self.file.is_some() {
                log(failure);
            }
        })
    }

    /// Reads the configuration file again, and the files for TLS. All of it comes into force, or nothing does.
    ///
    /// # Errors
    /// What is wrong with the file, or with what it names; or that there is none.
    fn read_again(&self) -> Result<Changes, Failure> {
        let Some(file) = &self.file else {
            return Err(Failure::failed(
                "the server has no configuration file to read: it was started without --config; SIGHUP has it read its \
                 certificates and keys again",
            ));
        };
        let mut read = config::load(file)?;
        read.server.log = read.server.log.max(self.log);
        let mut config = self.config();
        let listeners = self.listeners.get().filter(|_| can_follow(&config, &read));
        let stays = need_restart(&config, &read, listeners.is_some());
        let next = reloaded(&config, read, listeners.is_some());
        let settings = differing_settings(&config, &next);
        // It may not fit what stays.
        config::check(&next)?;
        claims::refuse(&next, &self.run)?;
        let (server, security) = server_config(&next)?;
        let prepared = self.live.prepare(&next)?;
        prepared.warn();
        let was_exposed = self.exposure(&self.security(), &config).is_some();
        let listening =
            listeners.map(|one| one.prepare(&config.listeners, &next.listeners)).transpose()?;
        // Last, as it takes volumes over.
        let prepared = prepared.open_volumes(&next)?;
        let reconfigure = || {
            if let Some(reconfigure) = self.reconfigure.get() {
                reconfigure(server);
            }
        };
        // An export that relies on TLS for all is not served without, nor one that is for TLS alone before that is said.
        let mut changes = match self.security().is_required() && !security.is_required() {
            true => {
                let changes = prepared.commit();
                reconfigure();
                changes
            }
            false => {
                reconfigure();
                prepared.commit()
            }
        };
        // Who may connect, and how, is in force by now.
        if let Some(listening) = listening {
            listening.commit();
        }
        if let Some(exposure) = self.exposure(&security, &next).filter(|_| !was_exposed) {
            tracing::warn!("{exposure}");
        }
        *self.security() = security;
        *config = next;
        changes.settings = settings;
        tracing::info!("read the configuration again: {changes}");
        if !stays.is_empty() {
            tracing::warn!(
                "{}: {}, which {} from what is in force, {} a restart of the server; all else in the file is in force",
                file.display(),
                stays.join(", "),
                if stays.len() == 1 { "differs" } else { "differ" },
                if stays.len() == 1 { "takes" } else { "take" }
            );
        }
        changes.restart = stays;
        Ok(changes)
    }

    /// See [`Security::exposure`].
    fn exposure(&self, security: &Security, config: &Config) -> Option<String> {
        let addresses = self.listeners.get().map(Listeners::tcp).unwrap_or_default();
        security.exposure(addresses, config)
    }

    /// Opens the volumes, before anything is accepted. Blocks until they are open.
    ///
    /// # Errors
    /// When one can't be opened.
    pub(super) fn open_volumes(&self) -> Result<(), Failure> {
        let open = || {
            let config = self.config();
            self.live
                .prepare(&config)?
                .open_volumes(&config)
                .map(|prepared| drop(prepared.commit()))
        };
        // Waiting for the stores is not for a thread that a runtime is on, and futures are large without optimisation.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("nbd-volumes".into());
            let thread = thread.stack_size(STACK).spawn_scoped(scope, open);
            let thread = thread.map_err(|error| {
                Failure::failed(format!("cannot start a thread: {error}; raise ulimit -u"))
            })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Whether there is a volume that one server alone can have.
    pub(super) fn takes_volumes(&self) -> bool {
        let is_written = |export: &Export| match export.backend() {
            Ok(config::Backend::Volume(url)) => {
                Place::of(url).is_ok_and(|place| place.is_writable())
            }
            _ => false,
        };
        self.config().exports.iter().any(is_written)
    }

    /// Has clients wait in the queues of the listening sockets, gives those that are connected so much time, and closes the
    /// volumes, so that another server can open them.
    ///
    /// # Errors
    /// When a volume can't be closed. Then everything is as before, as far as the error does not say otherwise.
    pub(super) fn hand_over(&self, linger: impl FnOnce()) -> Result<HandedOver<'_>, Failure> {
        if let Some(listeners) = self.listeners.get() {
            listeners.pause();
        }
        linger();
        self.live.hand_over().inspect_err(|_| self.accept_again())
    }

    /// Takes volumes back that no other server has opened, and accepts clients again. Says what became of each.
    pub(super) fn take_back(&self, handed_over: HandedOver<'_>) -> String {
        let left = handed_over.take_back();
        self.accept_again();
        left
    }

    fn accept_again(&self) {
        if let Some(listeners) = self.listeners.get() {
            listeners.resume();
        }
    }

    /// Serves one more export.
    ///
    /// # Errors
    /// When there is one of that name, or it can't be opened.
    pub(super) fn add(&self, export: Export) -> Result<Changes, Failure> {
        self.change(|exports| exports.push(export))
    }

    /// Serves an export no longer, or a directory, whose name may lack the last slash, and disconnects its clients in order.
    ///
    /// # Errors
    /// When there is none of that name, or no other one.
    pub(super) fn remove(&self, name: &str) -> Result<Changes, Failure> {
        let exports = self.config().exports.clone();
        let labels = Vec::from_iter(exports.iter().map(Export::label));
        let directory = format!("{name}/");
        // The directory of the name '' is all that is served under its files' own names: not what '' is typed for.
        let names = [Some(name), Some(&*directory).filter(|_| !name.is_empty())];
        let label = names.into_iter().flatten().find(|name| labels.iter().any(|it| it == name));
        let Some(label) = label else {
            let remedy = match labels.iter().find(|it| is_below(it, name)) {
                Some(directory) => format!(
                    "if it is a file of the directory '{directory}', move it elsewhere, or remove the directory"
                ),
                None => "see which exports are with nbd list".into(),
            };
            let noun = config::noun(name);
            return Err(Failure::failed(format!("{noun} is not served: {remedy}")));
        };
        if labels.len() == 1 {
            return Err(Failure::failed("it is the only export: end the server instead"));
        }
        self.change(|exports| exports.retain(|export| export.label() != label))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Export>)) -> Result<Changes, Failure> {
        let mut config = self.config();
        // Those of a file are not where they were.
        let mut next = Config { source: config::Source::default(), ..config.clone() };
        change(&mut next.exports);
        config::check(&next)?;
        claims::refuse(&next, &self.run)?;
        // All that is new is open before anything changes.
        let prepared = self.live.prepare(&next)?;
        self.security().read_again()?;
        let changes = prepared.open_volumes(&next)?.commit();
        *config = next;
        tracing::info!("changed the exports: {changes}");
        Ok(changes)
    }
}

/// Whether an export of that name can be a file of the directory that is served as `label`.
fn is_below(label: &str, name: &str) -> bool {
    match label {
        "/" => true,
        label => label.ends_with('/') && name.starts_with(label),
    }
}

/// When another value of each key of `[server]` comes into force: one list of those that do when the file is read again,
/// and one of those that take a restart. It names all fields, so that none that is new is forgotten.
macro_rules! server_keys {
    (at_once: [$($now:ident),* $(,)?], restart: [$($later:ident),* $(,)?] $(,)?) => {
        /// The server once its file was read again.
        fn reloaded_server(current: &Server, read: &Server) -> Server {
            let Server { $($now: _),*, $($later),* } = current.clone();
            Server { $($now: read.$now.clone()),*, $($later),* }
        }

        /// The keys whose values differ.
        fn differing_keys<'a>(old: &'a Server, new: &'a Server) -> impl Iterator<Item = String> {
            let differ = [
                $((stringify!($now), old.$now != new.$now),)*
                $((stringify!($later), old.$later != new.$later),)*
            ];
            let differ = differ.into_iter().filter(|(_, differs)| *differs);
            differ.map(|(field, _)| field.replace('_', "-"))
        }

        /// Those of each list, for the documentation.
        #[cfg(test)]
        const KEYS: [&[&str]; 2] = [&[$(stringify!($now)),*], &[$(stringify!($later)),*]];
    };
}

server_keys! {
    at_once: [max_connections, idle_timeout, stall_timeout, drain_timeout, hang_up],
    restart: [runtime, control, metrics, log, sandbox, oldstyle],
}

/// What is in force once a file was read again: all but the keys of [`need_restart`]. `listeners` says whether those can
/// change.
fn reloaded(current: &Config, read: Config, listeners: bool) -> Config {
    let mut server = reloaded_server(&current.server, &read.server);
    // The file may name another runtime, which takes more of them, but not before the server starts.
    server.max_connections = server.max_connections.min(server.runtime.max_connections());
    let listeners = if listeners { &read.listeners } else { &current.listeners }.clone();
    Config { server, listeners, ..read }
}

/// What differs besides the exports: keys of the server, and tables.
fn differing_settings(old: &Config, new: &Config) -> Vec<String> {
    let tables = [
        ("[[listen]]", old.listeners != new.listeners),
        ("[access]", old.access != new.access),
        ("[tls]", old.tls != new.tls),
    ];
    let tables = tables.into_iter().filter(|(_, differs)| *differs);
    differing_keys(&old.server, &new.server).chain(tables.map(|(name, _)| name.into())).collect()
}

/// The keys that another value of comes into force only when the server starts.
fn need_restart(current: &Config, read: &Config, listeners: bool) -> Vec<String> {
    let after = reloaded(current, read.clone(), listeners);
    let mut keys = Vec::from_iter(differing_keys(&after.server, &read.server));
    if after.listeners != read.listeners {
        keys.push("[[listen]]".into());
    }
    keys
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
    use super::super::config::{Listen, RuntimeName, TcpAddress};
    use super::*;

    #[test]
    fn what_takes_a_restart_is_named_by_its_key() {
        let current = Config::default();
        assert!(need_restart(&current, &current, false).is_empty());
        let mut read = current.clone();
        // These are in force at once.
        read.server.max_connections += 1;
        read.server.stall_timeout = crate::quantity::Timeout::Never;
        read.access.allow_user.push("0".into());
        read.tls.verify_peer = true;
        read.exports.push(Export::default());
        assert!(need_restart(&current, &read, false).is_empty());
        let in_force = ["max-connections", "stall-timeout", "[access]", "[tls]"];
        assert_eq!(
            differing_settings(&current, &reloaded(&current, read.clone(), false)),
            in_force
        );
        read.server.log = LogLevel::Debug;
        read.server.oldstyle = true;
        assert_eq!(need_restart(&current, &read, false), ["log", "oldstyle"]);
        let address = TcpAddress { host: "::1".into(), port: 1 };
        read = Config { listeners: vec![Listen::tcp(address)], ..current.clone() };
        assert_eq!(need_restart(&current, &read, false), ["[[listen]]"]);
        assert!(need_restart(&current, &read, true).is_empty());
        assert_eq!(reloaded(&current, read.clone(), true), read);
        assert_eq!(reloaded(&current, read, false), current);
    }

    #[test]
    fn connections_for_another_runtime_wait_for_it() {
        let mut current = Config::default();
        current.server.runtime = RuntimeName::Blocking;
        let mut read = Config::default();
        read.server.max_connections = 5000;
        let after = reloaded(&current, read.clone(), false).server;
        let most = RuntimeName::Blocking.max_connections();
        assert_eq!((after.runtime, after.max_connections), (RuntimeName::Blocking, most));
        assert_eq!(need_restart(&current, &read, false), ["max-connections", "runtime"]);
    }

    /// Each list is the first column of a row.
    #[test]
    fn the_page_says_of_each_key_when_another_value_is_in_force() {
        let page = include_str!("../../../docs/configuration.md");
        for (keys, says) in KEYS.iter().zip(["in force for new clients", "takes a restart"]) {
            let words = keys.iter().map(|key| format!("`{}`", key.replace('_', "-")));
            let row = format!("| {} | ", Vec::from_iter(words).join(", "));
            let row = page.lines().find(|line| line.starts_with(&row));
            assert!(row.is_some_and(|row| row.contains(says)), "{keys:?}: {row:?}");
        }
    }
}

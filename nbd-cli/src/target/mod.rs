//! Where a server is: a URI, or the command that starts one.
//!
//! Wherever a URI is asked for, `[ COMMAND ARGS ]` will do: the command is started with a Unix socket that only this user
//! can reach, which it takes over by systemd's socket activation, as `nbdkit` and `qemu-nbd` do. It is stopped in the end.
//! A server on another machine can be reached by `ssh`, which has such a socket lead there.

mod ending;
mod holders;
mod sockets;
mod ssh;
mod subprocess;
mod words;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use nbd_blocking::client::{
    ClientConfig, Entered, Error, NoSession, OptionCode, OptionReplyType, Uri,
};
use nbd_blocking::{Client, Negotiation};

use crate::exit::Failure;
use crate::output::{self, printable};
use crate::quantity;
use crate::retries::Retries;
use crate::serve;
use crate::tls::TlsArguments;
use crate::waiting::{self, Watched};
use ssh::{Bridge, Remote};
use subprocess::Subprocess;

pub(crate) use ending::{before_a_signal_ends_this, conclude};
pub(crate) use holders::OpenFile;
pub(crate) use words::{Place, arguments, is_uri, places};

/// For how long, and how often, a server is asked.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Patience {
    /// How long a server may take for an answer: seconds, or a number with a suffix such as 500ms or 5m; 0 for no limit but
    /// that of 30 s while connecting. With --retries a server that owes an answer and sends nothing for so long is connected to anew
    #[arg(long, value_name = "T", default_value = "60", value_parser = quantity::duration)]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) retries: Retries,
}

/// The one server that a subcommand is about.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Arguments {
    /// The export's URI, such as nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH or, by ssh,
    /// nbd+ssh://USER@HOST/EXPORT?socket=PATH; or the command of a server between
    /// brackets, which is started on a private socket and stopped afterwards, such as [ qemu-nbd -f qcow2 disk.qcow2 ]
    #[arg(value_name = "URI | [ COMMAND ARGS ]", required = true, num_args = 1..)]
    words: Vec<OsString>,

    #[command(flatten)]
    patience: Patience,

    #[command(flatten)]
    tls: TlsArguments,
}

impl Arguments {
    /// Starts the server if that is what is asked for.
    pub(crate) fn open(&self) -> Result<Target, Failure> {
        Ok(self.open_with(0)?.0)
    }

    /// The same, with as many as `more` words behind the server, which come back.
    pub(crate) fn open_with(&self, more: usize) -> Result<(Target, Vec<OsString>), Failure> {
        let places = places(&self.words)?;
        let Some((place, rest)) = places.split_first() else {
            return Err(Failure::usage("give a URI, or [ COMMAND ARGS ]"));
        };
        let words: Vec<_> = rest.iter().take(more).map_while(Place::word).cloned().collect();
        if let Some(surplus) = rest.get(words.len()) {
            return Err(Failure::usage(format!("one server at a time; leave out {surplus}")));
        }
        let mut target = Target::open(place, self.patience.timeout, &self.tls)?;
        target.retry(&self.patience.retries, true);
        self.tls.check_used(&[target.uri()])?;
        Ok((target, words))
    }
}

/// A word that is the path of a file or device; `None` for a URI.
///
/// # Errors
/// For what is neither: the address of a server that is no URI, unless a file has that name. `nbd:` is never a file's.
pub(crate) fn path(word: &OsStr) -> Result<Option<&Path>, Failure> {
    let (path, is_uri) = (Path::new(word), is_uri(word));
    let (meant, full) = (words::meant_uri(word), word.to_string_lossy().contains("://"));
    if is_uri && full {
        return Ok(None);
    }
    if let Some(hint) = served_by(word) {
        return Err(Failure::usage(format!("'{}' is no file: {hint}", path.display())));
    }
    // A link that leads nowhere counts as well.
    if !is_uri && (meant.is_none() || path.symlink_metadata().is_ok()) {
        return Ok(Some(path));
    }
    let meant = meant.unwrap_or_else(|| "nbd://HOST:PORT/EXPORT".into());
    Err(Failure::usage(format!(
        "'{}' is neither an NBD URI nor a file: give {} for a server, or {} for a file",
        path.display(),
        output::shell_word(meant.as_ref()),
        output::shell_word(Path::new(".").join(path).as_ref()),
    )))
}

/// What to give for a word that means a disk to `nbd serve` alone, such as `memory:1G`; `None` if there is such a file.
fn served_by(word: &OsStr) -> Option<String> {
    let is_file = Path::new(word).symlink_metadata().is_ok();
    let shown = output::shell_word(word);
    (!is_file && serve::is_disk(word)).then(|| format!("give [ nbd serve {shown} ] in its place"))
}

/// A server, and the export on it. A command that was started for it is stopped when this is dropped.
#[derive(Debug)]
pub(crate) struct Target {
    uri: Uri,
    server: Option<Subprocess>,
    bridge: Option<Bridge>,
    timeout: Duration,
    retries: Retries,
    /// Whether lost connections are reported on standard error, since there is no log.
    says: bool,
}

impl Target {
    /// Takes a word for a URI, and starts a command. Answers may take `timeout`, or any time if that is zero.
    pub(crate) fn open(
        place: &Place,
        timeout: Duration,
        tls: &TlsArguments,
    ) -> Result<Self, Failure> {
        waiting::start(false);
        match place {
            Place::Word(word) if ssh::is_ssh(word) => {
                let remote = Remote::parse(word).map_err(|error| {
                    Failure::usage(format!(
                        "{place} cannot be used: {error}; give nbd+ssh://[USER@]HOST[:PORT]/EXPORT?socket=PATH, or \
                         ?command=nbd%20serve%20--stdio%20PATH"
                    ))
                })?;
                let bridge = Bridge::start(remote, &word.to_string_lossy())?;
                let target = Self::new(bridge.uri()?, None, timeout);
                Ok(Self { bridge: Some(bridge), ..target })
            }
            Place::Word(word) => {
                let parsed = word.to_str().ok_or("it is not UTF-8".to_owned());
                let parsed = parsed.and_then(|text| text.parse().map_err(words::uri_error));
                let uri = parsed.map_err(|error| {
                    if let Some(meant) = words::meant_uri(word) {
                        let uri = output::shell_word(meant.as_ref());
                        return Failure::usage(format!("{place} is not an NBD URI: give {uri}"));
                    }
                    // Of a server on the web no more is known than that it is none of ours.
                    let is_web = word.as_encoded_bytes().starts_with(b"http");
                    if let Some(hint) = served_by(word).filter(|_| !is_web) {
                        return Failure::usage(format!("{place} is not an NBD URI: {hint}"));
                    }
                    if !is_uri(word) && Path::new(word).is_file() {
                        let shown = output::shell_path(Path::new(word));
                        return Failure::usage(format!(
                            "{place} is a file and no NBD URI: give [ nbd serve {shown} ] in its place"
                        ));
                    }
                    Failure::usage(format!(
                        "{place} is not an NBD URI: {error}; give one such as nbd://HOST/EXPORT or \
                         nbd+unix:///EXPORT?socket=PATH, or [ COMMAND ARGS ]"
                    ))
                })?;
                Ok(Self::new(tls.apply(uri)?, None, timeout))
            }
            Place::Command(words) => {
                let server = Subprocess::start(words, &place.to_string())?;
                let uri = Uri::unix(server.socket()).map_err(|error| {
                    Failure::failed(format!("cannot use the private socket: {error}"))
                })?;
                Ok(Self::new(uri, Some(server), timeout))
            }
        }
    }

    fn new(uri: Uri, server: Option<Subprocess>, timeout: Duration) -> Self {
        let (bridge, retries) = (None, Retries::default());
        Self { uri, server, bridge, timeout, retries, says: false }
    }

    /// From now on its clients try again. A command that was started for it and has ended does not come back.
    pub(crate) fn retry(&mut self, retries: &Retries, says: bool) {
        if self.server.is_none() {
            (self.retries, self.says) = (retries.for_another(), says);
        }
    }

    /// Where the server is.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Whether a command was started for this target, the server or ssh: its URI means nothing to others.
    pub(crate) fn is_command(&self) -> bool {
        self.server.is_some() || self.bridge.is_some()
    }

    /// The server as messages name it.
    pub(crate) fn name(&self) -> String {
        match (&self.server, &self.bridge) {
            (Some(server), _) => server.command().to_owned(),
            (None, Some(bridge)) => bridge.shown().to_owned(),
            (None, None) => self.uri.to_string(),
        }
    }

    /// The server, or the export on it, as a word to be pasted after `nbd info` or `nbd list`.
    pub(crate) fn word(&self, export: &str) -> String {
        match (&self.server, &self.bridge) {
            (Some(server), _) => server.command().to_owned(),
            (None, Some(bridge)) => output::shell_word(bridge.shown().as_ref()),
            (None, None) => output::shell_word(self.uri_of(export).to_string().as_ref()),
        }
    }

    /// The URI of an export of this server.
    fn uri_of(&self, export: &str) -> Uri {
        // A name that can't be one was refused long before.
        self.uri.clone().with_export(export).unwrap_or_else(|_| self.uri.clone())
    }

    /// The configuration of its clients, with deadlines no later than was asked for.
    pub(crate) fn config(&self) -> ClientConfig {
        let timeout = Some(self.timeout).filter(|timeout| !timeout.is_zero());
        let config = self.retries.apply(ClientConfig::new(), self.says, timeout);
        match timeout {
            None => config,
            Some(timeout) => {
                let connect_timeout = config.connect_timeout().min(timeout);
                config.with_connect_timeout(connect_timeout)
            }
        }
    }

    /// Enters the export.
    pub(crate) fn connect(&self, config: &ClientConfig) -> Result<Client, Failure> {
        let client = self.retries.connect(|| {
            let _reported = self.reported();
            Client::connect_with(&self.uri, config)
        });
        let client = client.map_err(|error| self.explain(&error))?;
        if let Some(server) = &self.server {
            server.connected(&client);
        }
        Ok(client)
    }

    /// Enters the export, for something else than a client of ours.
    #[cfg(target_os = "linux")]
    pub(crate) fn hand_over(&self, config: &ClientConfig) -> Result<Entered, Failure> {
        let _reported = self.reported();
        let negotiation = Negotiation::connect(&self.uri, config);
        let entered = negotiation.and_then(|mut it| it.hand_over(self.uri.export()));
        entered.map_err(|error| self.explain(&error))
    }

    /// Connects to the server without entering an export.
    pub(crate) fn negotiate(&self) -> Result<Negotiation, Failure> {
        self.negotiate_again().map_err(|error| self.explain(&error))
    }

    /// The same with a configuration of one's own.
    pub(crate) fn negotiate_with(&self, config: &ClientConfig) -> Result<Negotiation, Failure> {
        self.begin(config).map_err(|error| self.explain(&error))
    }

    /// Enters an export of this server; over a connection of its own if the negotiation was lost and another attempt is
    /// asked for.
    pub(crate) fn enter(
        &self,
        negotiation: &mut Negotiation,
        export: &str,
    ) -> Result<Client, Error> {
        match negotiation.enter(export) {
            Err(error) if self.tries_again_after(&error) => self.enter_anew(export),
            entered => entered,
        }
    }

    /// Enters an export of this server over a connection of its own.
    pub(crate) fn enter_anew(&self, export: &str) -> Result<Client, Error> {
        let uri = self.uri.clone().with_export(export)?;
        self.retries.connect(|| {
            let _reported = self.reported();
            Client::connect_with(&uri, &self.config())
        })
    }

    /// Whether another attempt is asked for after that, and may succeed.
    pub(crate) fn tries_again_after(&self, error: &Error) -> bool {
        self.retries.are_wanted() && error.is_transient()
    }

    /// The same, for one that was lost.
    pub(crate) fn negotiate_again(&self) -> Result<Negotiation, Error> {
        self.begin(&self.config())
    }

    fn begin(&self, config: &ClientConfig) -> Result<Negotiation, Error> {
        self.retries.connect(|| {
            let _reported = self.reported();
            Negotiation::connect(&self.uri, config)
        })
    }

    /// Whether a connection to it was lost, and replaced since.
    pub(crate) fn has_lost_connections(&self) -> bool {
        self.retries.have_replaced()
    }

    /// Has a server that takes long to connect to reported.
    fn reported(&self) -> Watched {
        let name = self.name();
        waiting::on(move |seconds| format!("waiting for {name}: no session yet after {seconds} s"))
    }

    /// Why a client of this server failed. The end of a command that was started explains more than a lost connection.
    pub(crate) fn explain(&self, error: &Error) -> Failure {
        if let Some(text) = self.missing(error) {
            return Failure::failed(text);
        }
        let about_the_connection =
            matches!(error, Error::Connect { .. } | Error::Protocol { .. } | Error::Lost { .. });
        match self.server.as_ref().filter(|_| about_the_connection).and_then(Subprocess::end) {
            Some(end) => Failure::failed(end),
            None => {
                // The library knows the parameter of URIs; the command has an option for it.
                let text = error.to_string().replace(
                    "name a folder (tls-certificates) whose",
                    "give --tls-certificates DIR, a folder whose",
                );
                Failure::failed(self.names().put(&text))
            }
        }
    }

    /// What messages call this server.
    pub(crate) fn names(&self) -> Names {
        let uris = [self.uri.to_string(), self.uri_of("").to_string()];
        Names { uris, name: self.name() }
    }

    /// What there is to say if the server does not have the export.
    fn missing(&self, error: &Error) -> Option<String> {
        let Error::Refused { export, refusal: NoSession::Option { code, reply }, text, .. } = error
        else {
            return None;
        };
        if *reply != OptionReplyType::ERR_UNKNOWN || *code == OptionCode::STARTTLS {
            return None;
        }
        let what = match export.as_deref() {
            None | Some("") => "default export".to_owned(),
            Some(name) => format!("export \"{}\"", printable(name)),
        };
        let server = match self.is_command() {
            true => self.name(),
            false => self.uri_of("").to_string(),
        };
        let words = match text.as_str() {
            "" => String::new(),
            text => format!(" ({})", printable(text)),
        };
        let list = self.word("");
        Some(format!(
            "there is no {what} on {server}{words}; see which there are with nbd list {list}"
        ))
    }
}

/// What messages call a server: the path of a private socket means nothing to a user.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// Of the export, and of the server.
    uris: [String; 2],
    name: String,
}

impl Names {
    /// A message in which the server has its name.
    pub(crate) fn put(&self, text: &str) -> String {
        // A server that is called by its URI has its name, of which the URI without an export may be the beginning.
        if self.uris.contains(&self.name) {
            return text.to_owned();
        }
        self.uris.iter().fold(text.to_owned(), |text, uri| text.replace(uri, &self.name))
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    /// The URI of the server alone is the beginning of that of an export.
    #[test]
    fn a_server_has_its_name_once_whatever_its_export_is_called() {
        const SERVERS: [&str; 6] = [
            "nbd://127.0.0.1:10810",
            "nbd://[::1]",
            "nbds://host:1",
            "nbd+unix:///?socket=/run/a",
            "nbds+unix:///?socket=b",
            "nbd+unix:///?socket=@c",
        ];
        cases(200, |random| {
            let length = random.below(4);
            let of = ['e', '/', ':', '1', ' ', '?', '\u{e9}', '%'];
            let export: String = (0..length).map(|_| random.of(&of)).collect();
            let uri: Uri = random.of(&SERVERS).parse().unwrap();
            let uri = uri.with_export(&export).unwrap();
            let command = "[ nbd serve disk ]".to_owned();
            let target = Target::new(uri, None, Duration::ZERO);
            let mut names = target.names();
            for shown in names.uris.clone() {
                let text = format!("the connection to {shown} was lost");
                assert_eq!(names.put(&text), text);
                assert_eq!(names.put(&names.put(&text)), text);
            }
            // A private socket is not shown, whichever of the two is meant.
            names.name.clone_from(&command);
            let [uri, server] = names.uris.clone();
            let text = format!("{uri} or {server}:");
            assert_eq!(names.put(&text), format!("{command} or {command}:"));
        });
    }
}

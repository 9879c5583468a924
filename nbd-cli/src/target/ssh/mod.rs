//! `nbd+ssh://`: a server on another machine that is reached by `ssh`.
//!
//! Clients of this process connect to a private socket. With `?command=` each connection is an `ssh` that runs the command
//! there, with the connection as its standard input and output; with `?socket=` one `ssh` forwards another private socket to
//! that socket there, and the connections are carried through it. Of the URI nothing becomes an
//! option or text that a shell interprets: parts that could are refused, and words of the command are quoted.

mod forwarding;

use core::fmt;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use nbd_engine::proto::{Address, Uri, UriError};
use tempfile::TempDir;

use self::forwarding::Forwarding;
use crate::exit::Failure;
use crate::output;
use crate::private_folder::private_folder;
use crate::waiting;

/// The variable that names another program than `ssh`.
const PROGRAM: &str = "NBD_SSH";

/// The scheme.
const SCHEME: &str = "nbd+ssh://";

/// Whether a word is meant for such a URI.
pub(super) fn is_ssh(word: &OsStr) -> bool {
    let start = word.as_bytes().get(..SCHEME.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(SCHEME.as_bytes()))
}

/// A server that is reached by ssh.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Remote {
    user: Option<String>,
    host: String,
    port: Option<u16>,
    how: How,
    export: String,
}

#[derive(Debug, PartialEq, Eq)]
enum How {
    /// Its words.
    Command(Vec<Vec<u8>>),
    /// An absolute path.
    Socket(Vec<u8>),
}

impl Remote {
    /// Reads `nbd+ssh://[USER@]HOST[:PORT]/EXPORT?socket=PATH`, or `?command=WORDS`.
    pub(super) fn parse(word: &OsStr) -> Result<Self, String> {
        let text = word.to_str().ok_or("it is not UTF-8")?;
        let rest = text.get(SCHEME.len()..).unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let host = authority.rsplit('@').next().unwrap_or_default();
        if host.is_empty() || host.starts_with(':') {
            return Err("it has no host".into());
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        // The parts are those of other NBD URIs, and so are their rules.
        let authority = Part { text, within: authority };
        let server = authority.read(["nbd://", "/"])?;
        let Address::Tcp { host, port } = server.address() else {
            return Err("it has no host".into());
        };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let path = Part { text, within: path }.read(["nbd+unix://", "?socket=a"])?;
        let how = match parameter(query)? {
            ("command", value) => command(&Part { text, within: value }.bytes("command")?)?,
            (_, value) => socket(&Part { text, within: value }.bytes("socket")?)?,
        };
        let user = server.user().map(name).transpose()?;
        Ok(Self {
            user,
            host: name(host)?,
            port: has_port.then_some(*port),
            how,
            export: path.export().to_owned(),
        })
    }

    /// The arguments of ssh up to the host.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["-T".into()];
        if let Some(port) = self.port {
            arguments.extend(["-p".into(), port.to_string().into()]);
        }
        if let Some(user) = &self.user {
            arguments.extend(["-l".into(), user.into()]);
        }
        arguments
    }
}

/// A part of a URI.
#[derive(Clone, Copy)]
struct Part<'a> {
    /// All of it.
    text: &'a str,
    within: &'a str,
}

impl Part<'_> {
    /// Reads it as the same part of another NBD URI, between the other parts of that. The error is about this one.
    fn read(self, around: [&str; 2]) -> Result<Uri, String> {
        let [before, after] = around;
        let begin = self.within.as_ptr().addr() - self.text.as_ptr().addr();
        let moved = |position: usize| (position + begin).saturating_sub(before.len());
        [before, self.within, after].concat().parse().map_err(|mut error| {
            match &mut error {
                UriError::BadCharacter { position, .. }
                | UriError::BadPercent { position }
                | UriError::BadHost { position }
                | UriError::BadPort { position, .. }
                | UriError::Fragment { position } => *position = moved(*position),
                _ => {}
            }
            error.to_string()
        })
    }

    /// The bytes of a parameter's value.
    fn bytes(self, name: &str) -> Result<Vec<u8>, String> {
        if self.within.is_empty() {
            return Err(format!("its {name} is empty"));
        }
        // A NUL in front would stand for an abstract socket.
        if self.within.contains("%00") {
            return Err(format!("its {name} contains NUL"));
        }
        match self.read(["nbd+unix:///?socket=", ""])?.address() {
            Address::Unix { socket } => Ok(socket.clone()),
            _ => Err(format!("its {name} is empty")),
        }
    }
}

/// The one parameter, and its value.
fn parameter(query: &str) -> Result<(&str, &str), String> {
    let mut found = None;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match found {
            _ if !["socket", "command"].contains(&name) => {
                return Err(format!("the parameter {name:?} means nothing here: leave it out"));
            }
            Some((earlier, _)) if earlier == name => {
                return Err(format!("the parameter {name:?} occurs twice: give it once"));
            }
            Some(_) => {
                return Err("it has both a socket and a command: leave out one of them".into());
            }
            None => found = Some((name, value)),
        }
    }
    found.ok_or_else(|| "it needs ?socket=PATH or ?command=WORDS, and nothing more".into())
}

/// A user or a host, which ssh and shells take for nothing else.
fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:%".contains(c);
    match text.starts_with('-') || text.is_empty() || !text.chars().all(plain) {
        false => Ok(text.to_owned()),
        true => Err(format!("'{text}' is not a name of a user or a machine that ssh can be given")),
    }
}

fn socket(path: &[u8]) -> Result<How, String> {
    // What separates the two paths in the option of ssh, and what escapes that.
    let odd = |byte: &u8| matches!(byte, b':' | b'\\') || byte.is_ascii_control();
    if !path.starts_with(b"/") || path.iter().any(odd) {
        return Err("its socket must be an absolute path without a colon or a backslash".into());
    }
    Ok(How::Socket(path.to_owned()))
}

fn command(words: &[u8]) -> Result<How, String> {
    if words.iter().any(u8::is_ascii_control) {
        return Err("its command has a control character".into());
    }
    let words = words_of(words)
        .ok_or("its command has a quote that is not closed, or ends with a backslash")?;
    match words.first() {
        Some(first) if !first.starts_with(b"-") => Ok(How::Command(words)),
        _ => Err("its command must begin with the name of a program".into()),
    }
}

/// The words of a command, with the quotes of a shell. Nothing else means what it means to one: not even `#`, for which
/// libraries leave out the rest.
fn words_of(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<Vec<u8>>, None);
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match (byte, quote) {
            (b'\'' | b'"', None) => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (_, Some(open)) if byte == open => quote = None,
            (b'\\', None) => word.get_or_insert_default().push(bytes.next()?),
            (b'\\', Some(b'"')) => {
                let word = word.get_or_insert_default();
                match bytes.next()? {
                    // Before anything else it is itself.
                    escaped @ (b'"' | b'\\' | b'$' | b'`') => word.push(escaped),
                    other => word.extend([b'\\', other]),
                }
            }
            (b' ', None) => words.extend(word.take()),
            _ => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// A word as a shell has to be given it, whatever it contains.
fn quoted(word: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word {
        match byte {
            b'\'' => quoted.extend_from_slice(br"'\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// A private socket here that leads to the server there.
pub(super) struct Bridge {
    /// Removed with it.
    _folder: TempDir,
    path: PathBuf,
    export: String,
    /// The URI as it was given.
    shown: String,
    /// The ssh that forwards a socket.
    forwarding: Option<Arc<Forwarding>>,
}

impl Bridge {
    /// Listens, and starts ssh for each connection or once for all.
    pub(super) fn start(remote: Remote, shown: &str) -> Result<Self, Failure> {
        let failed = |what: &str, error: io::Error| {
            Failure::failed(format!("cannot {what} for {shown}: {error}"))
        };
        let folder = private_folder()?;
        let path = folder.path().join("socket");
        let export = remote.export.clone();
        let listener = UnixListener::bind(&path).map_err(|error| failed("make a socket", error))?;
        let mut forwarding = None;
        let carry: Box<dyn Fn(UnixStream) + Send + Sync> = match &remote.how {
            How::Command(words) => {
                let line = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(&b' ');
                let mut arguments = remote.arguments();
                arguments.extend(["--".into(), remote.host.clone().into()]);
                arguments.push(OsString::from_vec(line));
                Box::new(move |stream| run(stream, &arguments))
            }
            How::Socket(there) => {
                if socket(path.as_os_str().as_bytes()).is_err() {
                    let folder = std::env::temp_dir();
                    let folder = output::quoted(folder.as_os_str());
                    return Err(Failure::failed(format!(
                        "cannot have ssh forward a socket in {folder}: set TMPDIR to a folder without a colon or a backslash"
                    )));
                }
                let (there, host, begin) = (there.clone(), remote.host.clone(), remote.arguments());
                let arguments = move |here: &OsStr| {
                    let sockets = [here.as_bytes(), &there].join(&b':');
                    let mut arguments = begin.clone();
                    arguments.extend(["-o".into(), "ExitOnForwardFailure=yes".into()]);
                    arguments.extend(["-L".into(), OsString::from_vec(sockets)]);
                    arguments.extend(["--".into(), host.clone().into()]);
                    // Ends when its input does, so that it does not outlive this process.
                    arguments.push("cat".into());
                    arguments
                };
                let ssh = Arc::new(Forwarding::new(folder.path().to_owned(), arguments));
                let host = remote.host.clone();
                let _reported = waiting::on(move |seconds| {
                    format!("waiting for ssh to reach {host}: {seconds} s")
                });
                ssh.prepare();
                forwarding = Some(Arc::clone(&ssh));
                let shown = shown.to_owned();
                Box::new(move |stream| {
                    if let Err(error) = ssh.carry(&stream)
                        && !ssh.has_ended()
                    {
                        say(&format!("cannot reach {shown} by ssh: {error}"));
                    }
                })
            }
        };
        let thread = thread::Builder::new().name("nbd-ssh".into());
        let thread = thread.spawn(move || serve(&listener, &carry.into()));
        thread.map_err(|error| failed("start a thread", error))?;
        Ok(Self { _folder: folder, path, export, shown: shown.to_owned(), forwarding })
    }

    /// The URI as it was given.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Where clients of this process connect.
    pub(super) fn uri(&self) -> Result<Uri, Failure> {
        Uri::unix(self.path.as_os_str().as_bytes())
            .and_then(|uri| uri.with_export(&self.export))
            .map_err(|error| Failure::failed(format!("cannot use the private socket: {error}")))
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(forwarding) = &self.forwarding {
            forwarding.end();
        }
    }
}

fn ssh(arguments: &[OsString]) -> Command {
    let program = std::env::var_os(PROGRAM).filter(|name| !name.is_empty());
    let mut command = Command::new(program.unwrap_or_else(|| "ssh".into()));
    command.args(arguments);
    command
}

/// Carries each connection on a thread of its own. Ends with the process.
fn serve(listener: &UnixListener, carry: &Arc<dyn Fn(UnixStream) + Send + Sync>) {
    for stream in listener.incoming().flatten() {
        let carry = Arc::clone(carry);
        // Without a thread the connection is closed.
        let thread = thread::Builder::new().name("nbd-ssh-one".into());
        let _started = thread.spawn(move || carry(stream));
    }
}

/// A connection becomes an ssh.
fn run(stream: UnixStream, arguments: &[OsString]) {
    let Ok(output) = stream.try_clone() else { return };
    let mut command = ssh(arguments);
    command.stdin(Stdio::from(OwnedFd::from(stream)));
    command.stdout(Stdio::from(OwnedFd::from(output)));
    match command.spawn() {
        Ok(mut child) => {
            // Its client finds the end of the stream once ssh, which has said why, ends.
            drop(command);
            drop(child.wait());
        }
        // The command keeps the stream open: at its end this process may be gone before it has said why.
        Err(error) => say(&format!("cannot run ssh: {error}")),
    }
}

fn say(error: &str) {
    crate::stderr::say_error(error, &[]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Remote, String> {
        Remote::parse(text.as_ref())
    }

    #[test]
    fn the_parts_of_a_uri_are_told_apart() {
        let remote =
            parse("nbd+ssh://alice@example.org:2222/a%20b?socket=/run/nbd%20x.sock").unwrap();
        assert_eq!(remote.user.as_deref(), Some("alice"));
        assert_eq!((&*remote.host, remote.port), ("example.org", Some(2222)));
        assert_eq!(remote.how, How::Socket(b"/run/nbd x.sock".to_vec()));
        assert_eq!(remote.export, "a b");
        let remote =
            parse("NBD+SSH://[::1]/?command=nbd%20serve%20--stdio%20%22/a%27b%20c%22").unwrap();
        assert_eq!((&*remote.host, remote.port, remote.user), ("::1", None, None));
        let words = ["nbd", "serve", "--stdio", "/a'b c"].map(|word| word.as_bytes().to_vec());
        assert_eq!(remote.how, How::Command(words.to_vec()));
    }

    #[test]
    fn what_could_be_an_option_or_text_of_a_shell_is_refused() {
        for text in [
            "nbd+ssh://-oProxyCommand=x/?socket=/a",
            "nbd+ssh://-l@host/?socket=/a",
            "nbd+ssh://a%3Bb@host/?socket=/a",
            "nbd+ssh://a%20b/?socket=/a",
            "nbd+ssh:///?socket=/a",
            "nbd+ssh://host/?socket=a",
            "nbd+ssh://host/?socket=/a:b",
            "nbd+ssh://host/?socket=/a%5Cb",
            "nbd+ssh://host/?socket=",
            "nbd+ssh://host/?command=-x",
            "nbd+ssh://host/?command=%20",
            "nbd+ssh://host/?command=a%0Ab",
            "nbd+ssh://host/?command=a&socket=/b",
            "nbd+ssh://host/?tls-certificates=/a",
            "nbd+ssh://host/",
        ] {
            assert!(parse(text).is_err(), "{text}: {:?}", parse(text));
        }
    }

    #[test]
    fn what_is_wrong_with_a_uri_is_said_of_its_own_parameters() {
        for (query, says) in [
            ("command=a&socket=/b", "it has both a socket and a command: leave out one of them"),
            ("socket=/b&command=a", "it has both a socket and a command: leave out one of them"),
            ("socket=/a&socket=/b", "the parameter \"socket\" occurs twice: give it once"),
            ("command=a&command=b", "the parameter \"command\" occurs twice: give it once"),
            ("command=", "its command is empty"),
            ("command", "its command is empty"),
            ("socket=", "its socket is empty"),
            ("socket=%00a", "its socket contains NUL"),
            ("command=a%00", "its command contains NUL"),
            (
                "tls-certificates=/a",
                "the parameter \"tls-certificates\" means nothing here: leave it out",
            ),
            ("socket=/a&x=1", "the parameter \"x\" means nothing here: leave it out"),
            ("", "it needs ?socket=PATH or ?command=WORDS, and nothing more"),
            ("&", "it needs ?socket=PATH or ?command=WORDS, and nothing more"),
        ] {
            assert_eq!(parse(&format!("nbd+ssh://host/?{query}")), Err(says.into()), "{query}");
        }
        assert!(parse("nbd+ssh://host/?&socket=/a&").is_ok());
        // Nothing of it is a host here.
        assert_eq!(parse("nbd+ssh://host//a?socket=/b").unwrap().export, "/a");
    }

    proptest! {
        /// A position is one in the URI as it was given, wherever what is wrong stands.
        #[test]
        fn what_is_wrong_is_where_the_message_says(
            user in "([a-z]{1,5}@)?", host in "[a-z]{1,9}", export in "/{1,3}[a-z]{0,9}", is_command: bool, wrong in 0..5_usize,
        ) {
            let name = if is_command { "command" } else { "socket" };
            let parts = [user, host, ":22".into(), export, format!("?{name}=/a")];
            let mut parts = parts.map(|part| part.replace("://", ":/"));
            let (mark, says) = [("^", "the character '^' at "), ("%z", "the percent sign at "), ("#", "the fragment at ")]
                [(wrong + parts[1].len()) % 3];
            // A port has other words, and no part ends with another one's.
            prop_assume!(wrong != 2 && !parts[wrong].is_empty() && !(wrong < 2 && mark == "#"));
            if wrong == 0 { parts[0].insert_str(0, mark) } else { parts[wrong].push_str(mark) }
            let uri = format!("{SCHEME}{}", parts.concat());
            let error = parse(&uri).unwrap_err();
            let at = uri.find(mark).unwrap();
            prop_assert!(error.contains(&format!("{says}{at}")), "{uri}: {error}");
        }

        /// As a shell has them, which gets nothing that it would expand or take for an operator.
        #[test]
        fn words_are_those_of_a_shell(text in r#"[ab #'"\\~=.]{0,16}"#) {
            let script = format!("printf '[%s]' x{text}");
            let shell = Command::new("sh").args(["-c", &script]).output().unwrap();
            let words = words_of(format!("x{text}").as_bytes());
            let shown = words.map(|words| words.iter().map(|word| [b"[", &word[..], b"]"].concat()).collect::<Vec<_>>().concat());
            // A `#` at the beginning of a word is an ordinary letter here.
            prop_assume!(!text.contains(" #") && !text.contains("~") || !shell.status.success());
            prop_assume!(!text.ends_with('\\'));
            match shown {
                Some(shown) => prop_assert_eq!(OsStr::from_bytes(&shown), OsStr::from_bytes(&shell.stdout)),
                None => prop_assert!(!shell.status.success()),
            }
        }

        #[test]
        fn a_quoted_word_is_one_word_whatever_it_contains(word in "[^\0]{0,20}") {
            let script = [&b"printf %s "[..], &quoted(word.as_bytes())].concat();
            let mut shell = Command::new("sh");
            let output = shell.arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
            prop_assert_eq!(output.stdout, word.as_bytes());
        }

        #[test]
        fn no_uri_gives_ssh_another_option(text in "[-a-z0-9:@/?=%.\\[\\]]{0,30}") {
            if let Ok(remote) = parse(&format!("nbd+ssh://{text}?socket=/a")) {
                prop_assert!(!remote.host.starts_with('-'));
                let arguments = remote.arguments();
                let known = ["-T", "-p", "-l"];
                let mut words = arguments.iter().map(|word| word.to_str().unwrap());
                while let Some(word) = words.next() {
                    prop_assert!(known.contains(&word), "{}", word);
                    if word != "-T" {
                        prop_assert!(!words.next().unwrap().starts_with('-'));
                    }
                }
            }
        }
    }
}

//! The server under test: `nbd serve` as a child process.
//!
//! The binary is `NBD_BIN` from the environment, or `nbd` in the folder of the build that the test belongs to.

use core::fmt;
use core::ops::{Deref, DerefMut};
use core::time::Duration;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::Background;
use crate::{Endpoint, SOON};

/// An adapter of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Threads.
    Blocking,
    /// Tokio.
    Tokio,
    /// async-std.
    AsyncStd,
}

impl Runtime {
    fn as_arg(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Tokio => "tokio",
            Self::AsyncStd => "async-std",
        }
    }
}

/// What a connection runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP on the loopback address.
    Tcp,
    /// A Unix socket in a folder of the test's own.
    Unix,
}

/// The adapter and the transport that a test is run for; [`matrix!`](crate::matrix) hands it out.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The adapter.
    pub runtime: Runtime,
    /// The transport.
    pub transport: Transport,
}

impl Setup {
    /// A server in the making.
    pub fn serve(self) -> Serve {
        let dir = TempDir::new().expect("a folder for the socket");
        let listen = match self.transport {
            Transport::Tcp => ["--port", "0", "--ip-addr", "127.0.0.1"].map(Into::into).into(),
            Transport::Unix => {
                let socket = dir.path().join("nbd.sock");
                vec!["--unix".to_owned(), socket.to_string_lossy().into_owned()]
            }
        };
        Serve {
            runtime: self.runtime,
            listen,
            args: Vec::new(),
            dir,
            preparation: None,
            detached: false,
        }
    }

    /// A running server of one export: `memory:SIZE`, a path, and so on.
    #[track_caller]
    pub fn serving(self, backend: &str) -> NbdServe {
        self.serve().arg(backend).start()
    }
}

/// A server that was not started yet.
#[derive(Debug)]
pub struct Serve {
    runtime: Runtime,
    listen: Vec<String>,
    args: Vec<String>,
    dir: TempDir,
    preparation: Option<String>,
    detached: bool,
}

impl Serve {
    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Replaces the arguments that say where to listen.
    pub fn listening<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.listen = args.into_iter().map(Into::into).collect();
        self
    }

    /// Runs shell commands in the server's process first, such as `ulimit`.
    pub fn prepared_by(mut self, script: &str) -> Self {
        self.preparation = Some(script.to_owned());
        self
    }

    /// Runs it without a controlling terminal, as services run.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// The folder of the test's own, where the server's socket is, too.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The program and its arguments.
    #[track_caller]
    pub fn command(&self) -> Command {
        let binary = nbd_binary();
        let mut command = match &self.preparation {
            None if self.detached => {
                let mut command = Command::new("setsid");
                command.arg(binary);
                command
            }
            None => Command::new(binary),
            Some(script) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("{script}; exec \"$0\" \"$@\"")).arg(binary);
                shell
            }
        };
        command.args(["serve", "--runtime", self.runtime.as_arg()]);
        command.args(&self.listen).args(&self.args);
        command
    }

    /// Starts the server and waits until it has said where it listens.
    #[track_caller]
    pub fn start(self) -> NbdServe {
        let mut command = self.command();
        let mut process =
            Background::spawn(&mut command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let Some(line) = process.next_line(SOON) else {
            let status = process.wait_exit(Duration::from_secs(1));
            panic!("{command:?} did not say where it listens (ended: {status:?})");
        };
        let endpoint = Endpoint::parse(&line)
            .unwrap_or_else(|| panic!("{command:?} wrote {line:?} where a URI was due"));
        NbdServe { process, endpoint, dir: self.dir }
    }
}

/// A running server; killed when dropped.
pub struct NbdServe {
    process: Background,
    endpoint: Endpoint,
    dir: TempDir,
}

impl NbdServe {
    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The URI of an export.
    pub fn uri(&self, export: &str) -> String {
        self.endpoint.uri(export)
    }

    /// A folder of the test's own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Deref for NbdServe {
    type Target = Background;

    fn deref(&self) -> &Background {
        &self.process
    }
}

impl DerefMut for NbdServe {
    fn deref_mut(&mut self) -> &mut Background {
        &mut self.process
    }
}

impl fmt::Debug for NbdServe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} on {:?}", self.process, self.endpoint)
    }
}

/// The binary under test.
#[track_caller]
pub fn nbd_binary() -> PathBuf {
    if let Some(named) = std::env::var_os("NBD_BIN").filter(|value| value != OsStr::new("")) {
        let binary = PathBuf::from(named);
        assert!(binary.is_file(), "NBD_BIN names {binary:?}, which is not there");
        return binary;
    }
    let test = std::env::current_exe().expect("a test knows where it is");
    let folder = test.ancestors().nth(2).expect("a test is in target/PROFILE/deps");
    let binary = folder.join("nbd");
    assert!(
        binary.is_file(),
        "{binary:?} is not there: build it first (cargo build -p nbd-cli, same profile and target \
         folder), or name another one in NBD_BIN"
    );
    binary
}

/// Runs tests for every adapter of the server, with each transport or with the Unix socket alone.
///
/// Tests are plain functions that take a [`Setup`](crate::server::Setup). A name that is forgotten here is
/// dead code, and the compiler says so. Where the transport can make a difference (framing, closing, load), a
/// test belongs under `tcp_and_unix`; under `unix` it runs once for each adapter.
#[macro_export]
macro_rules! matrix {
    (
        tcp_and_unix: [$($both:ident),* $(,)?],
        unix: [$($unix:ident),* $(,)?] $(,)?
    ) => {
        $crate::matrix!(@row blocking_tcp Blocking Tcp [$($both)*]);
        $crate::matrix!(@row blocking_unix Blocking Unix [$($both)* $($unix)*]);
        $crate::matrix!(@row tokio_tcp Tokio Tcp [$($both)*]);
        $crate::matrix!(@row tokio_unix Tokio Unix [$($both)* $($unix)*]);
        $crate::matrix!(@row async_std_tcp AsyncStd Tcp [$($both)*]);
        $crate::matrix!(@row async_std_unix AsyncStd Unix [$($both)* $($unix)*]);
    };
    (@row $row:ident $runtime:ident $transport:ident [$($test:ident)*]) => {
        mod $row {
            $(
                #[test]
                fn $test() {
                    super::$test($crate::server::Setup {
                        runtime: $crate::server::Runtime::$runtime,
                        transport: $crate::server::Transport::$transport,
                    });
                }
            )*
        }
    };
}

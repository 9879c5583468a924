//! `--run`: a command that runs while the server serves it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nbd_engine::net::LocalAddr;
use rustix::process::{Pid, Signal, kill_process};

use crate::exit::Failure;

/// The command, and the end of the server with it.
#[derive(Debug)]
pub(super) struct Captive {
    /// Until it has been waited for.
    pid: Arc<Mutex<Option<Pid>>>,
    waiting: JoinHandle<io::Result<ExitStatus>>,
}

impl Captive {
    /// Starts a command of the shell, which finds the server in its environment. Calls `ended` when it has ended.
    pub(super) fn start(
        command: &OsStr,
        variables: impl IntoIterator<Item = (&'static str, OsString)>,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Failure> {
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(command).envs(variables);
        // Those are for this process alone.
        for variable in ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            shell.env_remove(variable);
        }
        let failed = |error: io::Error| Failure::failed(format!("cannot run a command: {error}"));
        let mut child: Child = shell.spawn().map_err(failed)?;
        let pid = Arc::new(Mutex::new(Some(Pid::from_child(&child))));
        let known = Arc::clone(&pid);
        let wait = move || {
            let status = wait(&mut child, &known);
            ended();
            status
        };
        let thread = std::thread::Builder::new().name("nbd-run".into());
        let waiting = thread.spawn(wait).map_err(failed)?;
        Ok(Self { pid, waiting })
    }

    /// Asks the command to end if it has not, as the server has, and waits for it. An error is the status of the command,
    /// with which this process is to exit.
    pub(super) fn end(self) -> Result<(), Failure> {
        if let Some(pid) = *self.pid.lock().unwrap_or_else(PoisonError::into_inner) {
            // It is there, as it has not been waited for.
            let _asked = kill_process(pid, Signal::TERM);
        }
        let status = self.waiting.join().map_err(|_| Failure::failed("the command is lost"))?;
        let status =
            status.map_err(|error| Failure::failed(format!("the command is lost: {error}")))?;
        match code(status) {
            0 => Ok(()),
            code => Err(Failure::Status(code)),
        }
    }
}

/// Waits for its end. The process stays known, as a zombie at least, until nothing can signal it any more.
fn wait(child: &mut Child, known: &Mutex<Option<Pid>>) -> io::Result<ExitStatus> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let pid = Pid::from_child(child);
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    *known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    child.wait()
}

/// The exit status as shells give it: 128 and its number after a signal.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The variables of the command: those of nbdkit that make sense here. Each is set, so that none is inherited.
pub(super) fn variables(
    addresses: &[LocalAddr],
    export: &str,
    uri: impl Fn(&LocalAddr) -> String,
) -> Vec<(&'static str, OsString)> {
    let tcp = addresses.iter().find_map(LocalAddr::tcp);
    let unix = addresses.iter().find_map(LocalAddr::unix);
    let uri = OsString::from(addresses.first().map(uri).unwrap_or_default());
    let unix = unix.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    vec![
        ("uri", uri.clone()),
        ("nbd", uri),
        ("unixsocket", unix.unwrap_or_default().into()),
        ("port", tcp.map(|address| address.port().to_string()).unwrap_or_default().into()),
        ("exportname", export.into()),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn status_of(command: &str) -> Result<(), Failure> {
        let (sender, ended) = mpsc::channel();
        let ended_now = move || sender.send(()).unwrap();
        let captive = Captive::start(command.as_ref(), [], ended_now).unwrap();
        ended.recv().unwrap();
        captive.end()
    }

    #[test]
    fn the_status_is_that_of_the_command() {
        assert!(status_of("exit 0").is_ok());
        assert!(matches!(status_of("exit 7"), Err(Failure::Status(7))));
        assert!(matches!(status_of("exit 255"), Err(Failure::Status(255))));
        assert!(matches!(status_of("kill -9 $$"), Err(Failure::Status(137))));
    }

    #[test]
    fn a_command_is_asked_to_end_with_the_server() {
        let captive = Captive::start("exec sleep 1000".as_ref(), [], || {}).unwrap();
        assert!(matches!(captive.end(), Err(Failure::Status(143))));
    }

    #[test]
    fn the_variables_are_those_of_the_first_address_of_each_kind() {
        let addresses =
            [LocalAddr::Unix("/tmp/a b".into()), LocalAddr::Tcp("127.0.0.1:7".parse().unwrap())];
        let all = |addresses: &[LocalAddr]| {
            variables(addresses, "disk", |address| format!("uri of {address}"))
        };
        let set = |name, value: &str| (name, OsString::from(value));
        assert_eq!(
            all(&addresses),
            [
                set("uri", "uri of /tmp/a b"),
                set("nbd", "uri of /tmp/a b"),
                set("unixsocket", "/tmp/a b"),
                set("port", "7"),
                set("exportname", "disk")
            ]
        );
        assert_eq!(all(&addresses[1..])[2..4], [set("unixsocket", ""), set("port", "7")]);
    }
}

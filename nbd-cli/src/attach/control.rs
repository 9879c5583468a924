//! How `nbd detach` reaches the process that stays with a device: it listens on an abstract socket, named after the device.
//! Either side checks that the other one runs as root, or as the same user.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use super::device::Device;
use crate::serve::Timed;

/// How long the other side may take for a line. The kernel takes its time to detach a device.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a line at most.
const MAX_LINE: u64 = 4096;

/// The one thing to ask for.
const DETACH: &str = "detach\n";

/// The answer when it is done; any other one is why it is not.
const DONE: &str = "done";

fn address(device: Device) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("nbd-attach/{}", device.0))
}

/// Listens for those that want the device detached.
pub(super) fn listen(device: Device) -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&address(device)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes one request, if there is one: `detach` does what is asked for.
pub(super) fn serve(
    listener: &UnixListener,
    detach: impl FnOnce() -> Result<(), String>,
) -> io::Result<()> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(false)?;
    check_peer(&stream)?;
    if read_line(&stream)? != DETACH {
        return Err(ErrorKind::InvalidData.into());
    }
    let answer = detach().err();
    writeln!(timed(&stream), "{}", answer.as_deref().unwrap_or(DONE))
}

/// Has the process that stays with the device detach it; `None` if there is none. Gives why it does not.
pub(super) fn ask(device: Device) -> io::Result<Option<Result<(), String>>> {
    let stream = match UnixStream::connect_addr(&address(device)?) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(error),
    };
    check_peer(&stream)?;
    timed(&stream).write_all(DETACH.as_bytes())?;
    let answer = read_line(&stream)?;
    Ok(Some(match answer.trim_end_matches('\n') {
        DONE => Ok(()),
        why => Err(why.to_owned()),
    }))
}

/// Whether the process at the other end may do what this one may.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    if peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
        return Ok(());
    }
    let text = format!("it belongs to the user with number {}", peer.uid.as_raw());
    Err(io::Error::new(ErrorKind::PermissionDenied, text))
}

fn timed(stream: &UnixStream) -> Timed<'_> {
    Timed::new(stream, Instant::now() + PATIENCE)
}

fn read_line(stream: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(timed(stream).take(MAX_LINE)).read_line(&mut line)?;
    match line.ends_with('\n') {
        true => Ok(line),
        false => Err(ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that is not there, with a number that no other test has.
    fn device(index: u32) -> Device {
        Device(500_000 + std::process::id() % 400_000 + index)
    }

    /// What those get to know that ask a process which answers like this.
    fn asked(device: Device, answer: Result<(), String>) -> Option<Result<(), String>> {
        let listener = listen(device).unwrap();
        listener.set_nonblocking(false).unwrap();
        std::thread::scope(|scope| {
            let served = scope.spawn(|| serve(&listener, || answer));
            let asked = ask(device).unwrap();
            served.join().unwrap().unwrap();
            asked
        })
    }

    #[test]
    fn a_device_that_somebody_stays_with_is_detached_by_them() {
        assert_eq!(asked(device(0), Ok(())), Some(Ok(())));
        let why = "it is mounted on /mnt".to_owned();
        assert_eq!(asked(device(1), Err(why.clone())), Some(Err(why)));
    }

    #[test]
    fn a_device_that_nobody_stays_with_is_known_at_once() {
        assert_eq!(ask(device(2)).unwrap(), None);
        drop(listen(device(3)).unwrap());
        assert_eq!(ask(device(3)).unwrap(), None);
    }

    #[test]
    fn something_else_is_not_detached_for() {
        let listener = listen(device(4)).unwrap();
        listener.set_nonblocking(false).unwrap();
        let address = address(device(4)).unwrap();
        for line in ["", "detach", "attach\n", &"x".repeat(5000)] {
            let mut stream = UnixStream::connect_addr(&address).unwrap();
            stream.write_all(line.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            serve(&listener, || panic!("{line:?}")).unwrap_err();
        }
    }
}

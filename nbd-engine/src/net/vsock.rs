//! Virtual machine sockets (vsock): between a machine and its host, or within a machine by loopback.
//!
//! A connected one is handed out as a Unix stream of the standard library: every runtime can wait for such a stream, read it
//! and write it, whatever its family. Only its addresses, which nobody asks for, would be wrong.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::export::PeerAddr;

/// Every context identifier of this machine (`VMADDR_CID_ANY`).
pub const VSOCK_CID_ANY: u32 = u32::MAX;

/// A free port (`VMADDR_PORT_ANY`).
const PORT_ANY: u32 = u32::MAX;

/// A listening vsock socket, non-blocking.
#[derive(Debug)]
pub struct VsockListener(Socket);

/// Listens on a port of a context identifier of this machine, such as [`VSOCK_CID_ANY`]; port 0 takes a free one.
///
/// `backlog` is how many connections the system holds until they are accepted. The system may lower it.
///
/// # Errors
/// Those of the platform, with the address in the text: [`io::ErrorKind::AddrInUse`] when the port is taken,
/// [`io::ErrorKind::AddrNotAvailable`] when the identifier is not this machine's.
pub fn bind_vsock(cid: u32, port: u32, backlog: u32) -> io::Result<VsockListener> {
    let listen = || {
        let socket = bound(cid, port)?;
        super::start_listening(&socket, backlog)?;
        Ok(VsockListener(socket))
    };
    listen().map_err(|error| super::cannot_listen(format_args!("vsock {cid}:{port}"), &error))
}

/// Finds out whether [`bind_vsock`] would succeed now. The address is bound for a moment, but not listened on.
///
/// # Errors
/// Those of [`bind_vsock`].
pub fn check_vsock(cid: u32, port: u32) -> io::Result<()> {
    let result = bound(cid, port).map(drop);
    result.map_err(|error| super::cannot_listen(format_args!("vsock {cid}:{port}"), &error))
}

fn bound(cid: u32, port: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::vsock(cid, if port == 0 { PORT_ANY } else { port }))?;
    Ok(socket)
}

impl VsockListener {
    /// The context identifier and the actual port that it listens on.
    ///
    /// # Errors
    /// When the system does not report them.
    pub fn address(&self) -> io::Result<(u32, u32)> {
        let address = self.0.local_addr()?.as_vsock_address();
        address.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Takes a connection that is waiting, with what is known of its peer. The stream is non-blocking, and asking it for
    /// its addresses is an error.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when none is waiting; otherwise those of the platform.
    pub fn accept(&self) -> io::Result<(UnixStream, PeerAddr)> {
        let (socket, address) = self.0.accept()?;
        socket.set_nonblocking(true)?;
        let peer = match address.as_vsock_address() {
            Some((cid, port)) => format!("vsock {cid}:{port}").into(),
            None => "vsock".into(),
        };
        Ok((stream(socket), peer))
    }
}

impl AsFd for VsockListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for VsockListener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn stream(socket: Socket) -> UnixStream {
    UnixStream::from(OwnedFd::from(socket))
}

/// Connects, and waits for that: for two seconds at most, as Linux does by default. The stream is non-blocking.
pub(crate) fn connect_vsock(cid: u32, port: u32) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.connect(&SockAddr::vsock(cid, port))?;
    socket.set_nonblocking(true)?;
    Ok(stream(socket))
}

//! A kernel that is played: it takes sockets as the kernel does, and tests make requests through them.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::kernel::Channel;
use super::message::{HEADER, Request, attributes, read_text, read_u16, read_u32};

const FAMILY: u16 = 99;
const SOON: Duration = Duration::from_secs(60);

/// An attached device.
#[derive(Debug)]
pub(in super::super) struct Device {
    pub(in super::super) size: u64,
    pub(in super::super) block_size: u64,
    pub(in super::super) flags: u64,
    pub(in super::super) timeout: u64,
    pub(in super::super) dead_timeout: u64,
    pub(in super::super) backend: String,
    /// The sockets that it was given, in order; the latest of each connection.
    pub(in super::super) sockets: Vec<UnixStream>,
    /// How often it was given any.
    pub(in super::super) given: usize,
}

impl Device {
    /// Whether all its connections are.
    pub(in super::super) fn is_alive(&self) -> bool {
        !self.sockets.iter().any(is_dead)
    }
}

#[derive(Debug, Default)]
struct State {
    devices: BTreeMap<u32, Device>,
    answers: VecDeque<Vec<u8>>,
    /// The error number of the next request, which is not carried out.
    refusal: Option<i32>,
}

/// The kernel.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Model(Arc<(Mutex<State>, Condvar)>);

impl Model {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    pub(in super::super) fn refuse(&self, errno: i32) {
        self.state().refusal = Some(errno);
    }

    /// Waits until a device is as it should be, and gives what that found out.
    #[track_caller]
    pub(in super::super) fn wait<R>(
        &self,
        index: u32,
        mut look: impl FnMut(Option<&Device>) -> Option<R>,
    ) -> R {
        let mut found = None;
        let state = self.state();
        let until = |state: &mut State| {
            found = look(state.devices.get(&index));
            found.is_none()
        };
        let (state, _) = self.0.1.wait_timeout_while(state, SOON, until).unwrap();
        found.unwrap_or_else(|| panic!("it never comes to that: {:?}", state.devices))
    }

    /// Writes or reads at an offset by the simple protocol, over the given connection of a device.
    pub(in super::super) fn write(&self, index: u32, connection: usize, offset: u64, data: &[u8]) {
        let mut socket = self.socket(index, connection);
        socket.write_all(&[&header(1, offset, data.len()), data].concat()).unwrap();
        self.reply(&mut socket);
    }

    pub(in super::super) fn read(
        &self,
        index: u32,
        connection: usize,
        offset: u64,
        length: usize,
    ) -> Vec<u8> {
        let mut socket = self.socket(index, connection);
        socket.write_all(&header(0, offset, length)).unwrap();
        self.reply(&mut socket);
        let mut data = vec![0; length];
        socket.read_exact(&mut data).unwrap();
        data
    }

    fn reply(&self, socket: &mut UnixStream) {
        let mut reply = [0; 16];
        socket.read_exact(&mut reply).unwrap();
        assert_eq!(reply, *b"\x67\x44\x66\x98\0\0\0\0a cookie");
    }

    fn socket(&self, index: u32, connection: usize) -> UnixStream {
        let socket = self.state().devices[&index].sockets[connection].try_clone().unwrap();
        socket.set_nonblocking(false).unwrap();
        socket
    }

    fn carry_out(state: &mut State, command: u8, content: &[u8]) -> Result<Vec<Request>, i32> {
        const INVALID: i32 = 22;
        const BUSY: i32 = 16;
        if let Some(errno) = state.refusal.take() {
            return Err(errno);
        }
        let find = |kind| attributes(content).find(|(found, _)| *found == kind).map(|it| it.1);
        let number = |kind| find(kind).map(|it| u64::from_ne_bytes(it.try_into().unwrap()));
        let index = find(1).and_then(|value| read_u32(value, 0));
        let backend = find(10).map(read_text);
        let sockets = || find(7).map(sockets).unwrap_or_default();
        match command {
            1 => {
                let index = index.unwrap_or_else(|| {
                    (0..).find(|index| !state.devices.contains_key(index)).unwrap()
                });
                let device = Device {
                    size: number(2).ok_or(INVALID)?,
                    block_size: number(3).ok_or(INVALID)?,
                    timeout: number(4).ok_or(INVALID)?,
                    flags: number(5).ok_or(INVALID)?,
                    dead_timeout: number(8).ok_or(INVALID)?,
                    backend: backend.ok_or(INVALID)?,
                    sockets: sockets(),
                    given: 1,
                };
                if state.devices.contains_key(&index) {
                    return Err(BUSY);
                }
                state.devices.insert(index, device);
                let mut reply = Request::new(FAMILY, command, 1);
                reply.u32(1, index);
                Ok(vec![reply])
            }
            2 => {
                if let Some(device) = state.devices.remove(&index.ok_or(INVALID)?) {
                    for mut socket in device.sockets {
                        let _sent = socket.write_all(&header(2, 0, 0));
                        let _closed = socket.shutdown(Shutdown::Both);
                    }
                }
                Ok(Vec::new())
            }
            3 => {
                let device = state.devices.get_mut(&index.ok_or(INVALID)?).ok_or(INVALID)?;
                if backend.as_ref() != Some(&device.backend) {
                    return Err(INVALID);
                }
                device.size = number(2).unwrap_or(device.size);
                for socket in sockets() {
                    device.given += 1;
                    // As the kernel does: in place of a dead one, and dropped if there is none.
                    if let Some(dead) = device.sockets.iter_mut().find(|socket| is_dead(socket)) {
                        *dead = socket;
                    }
                }
                Ok(Vec::new())
            }
            5 => {
                let mut reply = Request::new(FAMILY, command, 1);
                reply.nested(9, |reply| {
                    for found in state.devices.keys() {
                        if index.is_none_or(|index| index == *found) {
                            reply.nested(1, |reply| {
                                reply.u32(1, *found);
                                reply.bytes(2, &[1]);
                            });
                        }
                    }
                });
                Ok(vec![reply])
            }
            _ => Err(INVALID),
        }
    }
}

impl Channel for Model {
    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let sequence = read_u32(datagram, 8).unwrap();
        let mut state = self.state();
        let outcome = match read_u16(datagram, 4) {
            Some(16) => {
                let mut reply = Request::new(16, 1, 2);
                reply.bytes(1, &FAMILY.to_ne_bytes());
                Ok(vec![reply])
            }
            _ => Self::carry_out(&mut state, datagram[HEADER], &datagram[HEADER + 4..]),
        };
        let errno = *outcome.as_ref().err().unwrap_or(&0);
        for reply in outcome.unwrap_or_default() {
            state.answers.push_back(reply.finish(sequence));
        }
        let mut end = vec![36, 0, 0, 0, 2, 0, 0, 0];
        end.extend(sequence.to_ne_bytes());
        end.extend([0; 4]);
        end.extend((-errno).to_ne_bytes());
        end.extend(&datagram[..HEADER]);
        state.answers.push_back(end);
        self.0.1.notify_all();
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        self.state().answers.pop_front().ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

fn sockets(list: &[u8]) -> Vec<UnixStream> {
    let numbers = attributes(list).map(|(_, item)| {
        let (_, value) = attributes(item).next().unwrap();
        read_u32(value, 0).unwrap()
    });
    numbers.map(|number| UnixStream::from(duplicate(number))).collect()
}

/// Duplicates a descriptor of this process by its number, as the kernel takes it.
fn duplicate(number: u32) -> std::os::fd::OwnedFd {
    #[expect(unsafe_code, reason = "a number is all that the kernel gets")]
    // SAFETY: the sender of the message keeps it open while it is carried out.
    let socket = unsafe { BorrowedFd::borrow_raw(number.cast_signed()) };
    socket.try_clone_to_owned().unwrap()
}

fn is_dead(socket: &UnixStream) -> bool {
    nbd_engine::is_socket_peer_gone(socket)
}

/// A request of the simple protocol.
fn header(command: u8, offset: u64, length: usize) -> Vec<u8> {
    let mut request = [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, command][..], b"a cookie"].concat();
    request.extend(offset.to_be_bytes());
    request.extend((length as u32).to_be_bytes());
    request
}

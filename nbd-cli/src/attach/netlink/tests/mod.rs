//! Messages against those that a C program makes of the kernel's headers, and dialogues with a kernel that is played here.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use nbd_testkit::cases;
use nbd_testkit::process::run;
use rustix::io::Errno;

use super::family::{Connect, Nbd, Reconfigure, State};
use super::kernel::{Channel, Error};
use super::message::{Received, attributes, messages};

const SOON: Duration = Duration::from_secs(120);

/// The messages of `reference.c` by their names.
fn reference(name: &str) -> Vec<u8> {
    static MESSAGES: OnceLock<HashMap<String, Vec<u8>>> = OnceLock::new();
    let messages = MESSAGES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let (source, program) =
            (folder.path().join("reference.c"), folder.path().join("reference"));
        std::fs::write(&source, include_str!("reference.c")).unwrap();
        // The linker of Rust programs is a C compiler, and the headers are those of the C library's package.
        run(Command::new("cc").arg("-o").args([&program, &source]), SOON).success();
        let numbers = sockets().map(|socket| socket.as_raw_fd().to_string());
        let lines = run(Command::new(program).args(numbers), SOON).success();
        let message = |line: &str| {
            let (name, hex) = line.split_once(' ').unwrap();
            let byte = |index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).unwrap();
            (name.to_owned(), (0..hex.len() / 2).map(byte).collect())
        };
        lines.lines().map(message).collect()
    });
    messages[name].clone()
}

/// The channel of a kernel that answers with what it was told to, and records what it is asked.
#[derive(Default)]
struct Played {
    asked: RefCell<Vec<Vec<u8>>>,
    answers: RefCell<VecDeque<Vec<u8>>>,
}

impl Channel for &Played {
    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.asked.borrow_mut().push(datagram.to_vec());
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        self.answers.borrow_mut().pop_front().ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

impl Played {
    /// Answers with these datagrams, each of these messages, in reply to the request with this number.
    fn answer(&self, sequence: u32, datagrams: &[&[&str]]) {
        for names in datagrams {
            let message = |name: &&str| {
                let mut message = reference(name);
                message[8..12].copy_from_slice(&sequence.to_ne_bytes());
                message
            };
            self.answers.borrow_mut().push_back(names.iter().flat_map(message).collect());
        }
    }

    fn nbd(&self) -> Nbd<&Self> {
        self.answer(1, &[&["answer-family"], &["ack-capped"]]);
        Nbd::new(self).unwrap()
    }

    /// What was asked last, with the sequence number of the reference.
    fn asked(&self) -> Vec<u8> {
        let mut message = self.asked.borrow().last().unwrap().clone();
        message[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        message
    }
}

/// Two descriptors, whose numbers are part of the messages.
fn sockets() -> [BorrowedFd<'static>; 2] {
    static SOCKETS: OnceLock<(UnixStream, UnixStream)> = OnceLock::new();
    let (first, second) = SOCKETS.get_or_init(|| UnixStream::pair().unwrap());
    [first.as_fd(), second.as_fd()]
}

fn device(backend: &str) -> Connect<'_> {
    Connect {
        index: None,
        size: i64::MAX as u64,
        block_size: 512,
        timeout: Duration::from_secs(60),
        dead_timeout: Duration::from_secs(300),
        flags: 0x12f,
        destroy_on_disconnect: false,
        disconnect_on_close: false,
        backend,
        sockets: sockets().to_vec(),
    }
}

#[test]
fn requests_are_those_of_the_kernels_headers_byte_by_byte() {
    let played = Played::default();
    let mut nbd = played.nbd();
    assert_eq!(played.asked(), reference("get-family"));

    let any = device("nbd://host/disk");
    let one = Connect {
        index: Some(15),
        size: 1024,
        block_size: 4096,
        // There is no way to say less, and zero means any time.
        timeout: Duration::from_millis(1),
        dead_timeout: Duration::ZERO,
        flags: 1,
        destroy_on_disconnect: true,
        disconnect_on_close: true,
        backend: "",
        sockets: vec![sockets()[0]],
    };
    for (device, name) in [(any, "connect-any"), (one, "connect-one")] {
        nbd.connect(&device).unwrap_err();
        assert_eq!(played.asked(), reference(name), "{name}");
    }
    for (sockets, name) in [(vec![sockets()[0]], "reconfigure"), (vec![], "resize")] {
        let backend = "nbd://host/disk";
        let change = Reconfigure { index: 2, backend, size: Some(4096), sockets };
        nbd.reconfigure(&change).unwrap_err();
        assert_eq!(played.asked(), reference(name), "{name}");
    }
    nbd.disconnect(7).unwrap_err();
    assert_eq!(played.asked(), reference("disconnect"));
    nbd.devices().unwrap_err();
    assert_eq!(played.asked(), reference("status-all"));
    nbd.is_connected(7).unwrap_err();
    assert_eq!(played.asked(), reference("status-one"));
    let numbers = played.asked.borrow().iter().map(|request| request[8..12].to_vec()).collect();
    let numbers: Vec<Vec<u8>> = numbers;
    assert!((1..=numbers.len()).all(|n| numbers[n - 1] == (n as u32).to_ne_bytes()));
}

#[test]
fn answers_are_understood_in_one_datagram_or_several() {
    let played = Played::default();
    let mut nbd = played.nbd();
    played.answer(2, &[&["answer-connect"], &["ack"]]);
    assert_eq!(nbd.connect(&device("")).unwrap(), 3);
    // Messages in answer to something else are none of ours.
    played.answer(77, &[&["refused-eperm"], &["answer-connect", "ack"]]);
    played.answer(3, &[&["noop", "answer-status", "ack-capped"]]);
    let (unused, connected) =
        (|index| State { index, connected: false }, |index| State { index, connected: true });
    assert_eq!(nbd.devices().unwrap(), [unused(0), connected(7), connected(300)]);
    played.answer(4, &[&["answer-status", "answer-status-none"], &["answer-status"], &["done"]]);
    assert_eq!(nbd.devices().unwrap().len(), 6, "a reply of several messages");
    for (sequence, answer, is_connected) in
        [(5, "answer-status", true), (6, "answer-status-none", false)]
    {
        played.answer(sequence, &[&[answer], &["ack"]]);
        assert_eq!(nbd.is_connected(7).unwrap(), is_connected);
    }
    for sequence in [7, 8] {
        played.answer(sequence, &[&["ack"]]);
    }
    nbd.disconnect(1).unwrap();
    assert!(matches!(nbd.connect(&device("")), Err(Error::Answer(_))), "no device is named");
}

#[test]
fn refusals_have_a_number_and_the_kernels_text() {
    let played = Played::default();
    let mut nbd = played.nbd();
    for (sequence, name, errno, words) in [
        (2, "refused-eperm", Errno::PERM, None),
        (3, "refused-ebusy-capped", Errno::BUSY, Some("device already in use")),
        (4, "refused-einval", Errno::INVAL, Some("backend image doesn't match")),
    ] {
        played.answer(sequence, &[&[name]]);
        match nbd.connect(&device("")) {
            Err(Error::Refused { errno: found, text }) => {
                assert_eq!((found, text.as_deref()), (errno, words), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let channel = &Played::default();
    channel.answer(1, &[&["ack"]]);
    assert!(matches!(Nbd::new(channel), Err(Error::Answer(_))), "a family without a number");
}

/// Whatever comes, nothing panics or goes on for ever, and a message that is cut off is none.
#[test]
fn malformed_answers_are_no_answers() {
    let names =
        ["answer-family", "answer-status", "refused-einval", "refused-ebusy-capped", "done", "ack"];
    cases(500, |random| {
        let mut bytes: Vec<u8> = names.iter().flat_map(|name| reference(name)).collect();
        for _ in 0..random.below(8) {
            let index = random.below(bytes.len() as u64) as usize;
            bytes[index] = random.below(256) as u8;
        }
        bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
        let mut count = 0;
        for (_, received) in messages(&bytes) {
            count += 1;
            if let Received::Reply(payload) = received {
                assert!(attributes(payload).count() <= payload.len());
            }
        }
        assert!(count <= bytes.len() / 16);
        let played = Played::default();
        played.answers.borrow_mut().push_back(bytes);
        let _any = Nbd::new(&played);
    });
    for name in names {
        let whole = reference(name);
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length} bytes of {name}");
        }
    }
}

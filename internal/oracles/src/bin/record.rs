//! Records sessions between a client and a server of others: a proxy that writes down what each side sends.
//!
//! `record LISTEN SERVER PREFIX [NAME=VALUE]...` listens on one address, hands each connection on to the other, and
//! writes it to `PREFIX-1.txt`, `PREFIX-2.txt` and so on, with the given header lines. An address is the path of a
//! Unix socket, or `host:port`. It ends when its standard input does.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nbd_oracles::transcript::{Side, Transcript};

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

fn is_tcp(address: &str) -> bool {
    !address.contains('/') && address.contains(':')
}

impl Listener {
    fn bind(address: &str) -> io::Result<Self> {
        if is_tcp(address) {
            TcpListener::bind(address).map(Self::Tcp)
        } else {
            UnixListener::bind(address).map(Self::Unix)
        }
    }

    fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

impl Stream {
    fn connect(address: &str) -> io::Result<Self> {
        if is_tcp(address) {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Ok(Self::Tcp(stream))
        } else {
            UnixStream::connect(address).map(Self::Unix)
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        }
    }

    /// Tells the other side that there is no more. That it has gone already is no harm.
    fn finish(&self) {
        let _gone = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }
}

/// Hands on what one side sends. It is written down before it is handed on, so that no answer comes before its question.
fn pump(mut from: Stream, mut to: Stream, side: Side, transcript: &Mutex<Transcript>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        transcript.lock().unwrap_or_else(PoisonError::into_inner).push(side, &buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    to.finish();
}

fn record(client: Stream, server: &str, header: &[(String, String)], path: &str) -> io::Result<()> {
    let server = Stream::connect(server)?;
    let transcript = Arc::new(Mutex::new(Transcript::default()));
    let (client_out, server_out) = (client.try_clone()?, server.try_clone()?);
    let up = {
        let transcript = Arc::clone(&transcript);
        thread::spawn(move || pump(client, server_out, Side::Client, &transcript))
    };
    pump(server, client_out, Side::Server, &transcript);
    let _panicked = up.join();
    let mut transcript = transcript.lock().unwrap_or_else(PoisonError::into_inner);
    transcript.header = header.to_vec();
    std::fs::write(path, transcript.to_string())
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, server, prefix, header @ ..] = &arguments[..] else {
        return Err(io::Error::other("usage: record LISTEN SERVER PREFIX [NAME=VALUE]..."));
    };
    let header = header.iter().filter_map(|line| line.split_once('='));
    let header: Vec<_> = header.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let listener = Listener::bind(listen)?;
    let (server, prefix) = (server.clone(), prefix.clone());
    thread::spawn(move || {
        let mut recordings = Vec::new();
        for number in 1.. {
            let Ok(client) = listener.accept() else { break };
            let (server, header) = (server.clone(), header.clone());
            let path = format!("{prefix}-{number}.txt");
            recordings.push(thread::spawn(move || record(client, &server, &header, &path)));
        }
    });
    io::copy(&mut io::stdin(), &mut io::sink())?;
    // Those who close last still have to be written down.
    thread::sleep(std::time::Duration::from_millis(300));
    Ok(())
}

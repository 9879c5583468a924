//! The handshake of both sides, no more of it than the benchmark needs.

use std::io::{self, Error, ErrorKind, Read, Write};

use crate::mode::Mode;
use crate::wire::*;

/// No option or option reply that is of use here is longer; a longer one is a broken peer.
const MAX_OPTION_DATA: u32 = 64 * 1024;

/// The handshake flags that the yardstick offers and the generator takes.
const OFFERED: u16 = (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES) as u16;

/// What the client learns from GO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
}

/// The server's side: any name is good, only GO and ABORT are known.
///
/// `Ok(false)` means that the client ended the haggling.
pub fn serve(mut stream: impl Read + Write, size: u64) -> io::Result<bool> {
    let mut greeting = Vec::with_capacity(18);
    greeting.extend_from_slice(&magic::INIT.to_be_bytes());
    greeting.extend_from_slice(&magic::IHAVEOPT.to_be_bytes());
    greeting.extend_from_slice(&OFFERED.to_be_bytes());
    stream.write_all(&greeting)?;
    let _client_flags: [u8; 4] = read_array(&mut stream)?;
    loop {
        expect(u64::from_be_bytes(read_array(&mut stream)?), magic::IHAVEOPT, "option magic")?;
        let option = Opt(u32::from_be_bytes(read_array(&mut stream)?));
        skip_data(&mut stream)?;
        let mut answer = Vec::with_capacity(64);
        match option {
            Opt::GO => {
                let mut info = [0; 12];
                info[..2].copy_from_slice(&Info::EXPORT.0.to_be_bytes());
                info[2..10].copy_from_slice(&size.to_be_bytes());
                info[10..].copy_from_slice(&flag::HAS_FLAGS.to_be_bytes());
                option_reply(&mut answer, option, Rep::INFO, &info);
                option_reply(&mut answer, option, Rep::ACK, &[]);
            }
            Opt::ABORT => option_reply(&mut answer, option, Rep::ACK, &[]),
            _ => option_reply(&mut answer, option, Rep::ERR_UNSUP, &[]),
        }
        stream.write_all(&answer)?;
        match option {
            Opt::GO => return Ok(true),
            Opt::ABORT => return Ok(false),
            _ => {}
        }
    }
}

/// The client's side: the greeting, what `mode` takes, and GO for `name`. A server that does not have the mode is
/// an error of kind [`ErrorKind::Unsupported`].
pub fn go(mut stream: impl Read + Write, name: &str, mode: Mode) -> io::Result<Export> {
    greet(&mut stream)?;
    enter(stream, name, mode)
}

/// The client's side: the greeting and the handshake flags.
pub fn greet(mut stream: impl Read + Write) -> io::Result<()> {
    expect(u64::from_be_bytes(read_array(&mut stream)?), magic::INIT, "NBDMAGIC")?;
    expect(u64::from_be_bytes(read_array(&mut stream)?), magic::IHAVEOPT, "newstyle greeting")?;
    let flags = u16::from_be_bytes(read_array(&mut stream)?) & OFFERED;
    if u32::from(flags) & handshake::FIXED_NEWSTYLE == 0 {
        return Err(invalid("the server does not speak fixed newstyle"));
    }
    stream.write_all(&u32::from(flags).to_be_bytes())
}

/// The client's side: asks for TLS, which begins with the next byte.
pub fn start_tls(mut stream: impl Read + Write) -> io::Result<()> {
    stream.write_all(&option(Opt::STARTTLS, &[]))?;
    match read_option_reply(&mut stream, Opt::STARTTLS)? {
        (Rep::ACK, _) => Ok(()),
        _ => Err(Error::new(ErrorKind::Unsupported, "the server does not have TLS")),
    }
}

/// The client's side: what `mode` takes, and GO for `name`.
pub fn enter(mut stream: impl Read + Write, name: &str, mode: Mode) -> io::Result<Export> {
    let length = u32::try_from(name.len()).ok().filter(|length| *length <= 4096);
    let length = length.ok_or_else(|| invalid("the export name is too long"))?;
    if let Some(number) = mode.option() {
        stream.write_all(&option(number, &[]))?;
        let (kind, _) = read_option_reply(&mut stream, number)?;
        if kind != Rep::ACK {
            let text = format!("the server does not have {}", mode.name());
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
    }
    let mut data = Vec::with_capacity(64);
    data.extend_from_slice(&length.to_be_bytes());
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&0u16.to_be_bytes());
    stream.write_all(&option(Opt::GO, &data))?;

    let mut export = None;
    loop {
        let (kind, data) = read_option_reply(&mut stream, Opt::GO)?;
        match kind {
            Rep::ACK => return export.ok_or_else(|| invalid("ACK without INFO_EXPORT")),
            Rep::INFO => {
                if let Ok(info) = <[u8; 12]>::try_from(data.as_slice())
                    && info[..2] == Info::EXPORT.0.to_be_bytes()
                {
                    let [_, _, size @ .., high, low] = info;
                    export = Some(Export {
                        size: u64::from_be_bytes(size),
                        flags: u16::from_be_bytes([high, low]),
                    });
                }
            }
            _ if kind.is_error() => {
                let text = String::from_utf8_lossy(&data);
                return Err(invalid(format!("the server refused GO: {kind:?} {text:?}")));
            }
            _ => {}
        }
    }
}

fn option(number: Opt, data: &[u8]) -> Vec<u8> {
    let mut option = Vec::with_capacity(16 + data.len());
    option.extend_from_slice(&magic::IHAVEOPT.to_be_bytes());
    option.extend_from_slice(&number.0.to_be_bytes());
    option.extend_from_slice(&(data.len() as u32).to_be_bytes());
    option.extend_from_slice(data);
    option
}

/// Kind and data of one reply to the option that was sent last.
fn read_option_reply(stream: &mut impl Read, option: Opt) -> io::Result<(Rep, Vec<u8>)> {
    expect(u64::from_be_bytes(read_array(stream)?), magic::OPTION_REPLY, "option reply")?;
    expect(Opt(u32::from_be_bytes(read_array(stream)?)), option, "reply to what was asked")?;
    let kind = Rep(u32::from_be_bytes(read_array(stream)?));
    Ok((kind, read_data(stream)?))
}

fn option_reply(out: &mut Vec<u8>, option: Opt, kind: Rep, data: &[u8]) {
    out.extend_from_slice(&magic::OPTION_REPLY.to_be_bytes());
    out.extend_from_slice(&option.0.to_be_bytes());
    out.extend_from_slice(&kind.0.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
}

fn skip_data(stream: &mut impl Read) -> io::Result<()> {
    read_data(stream).map(drop)
}

fn read_data(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = u32::from_be_bytes(read_array(stream)?);
    if length > MAX_OPTION_DATA {
        return Err(invalid(format!("{length} bytes of option data")));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok(data)
}

fn read_array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn expect<T: PartialEq>(got: T, wanted: T, what: &str) -> io::Result<()> {
    if got == wanted { Ok(()) } else { Err(invalid(format!("this is no {what}"))) }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, text.into())
}

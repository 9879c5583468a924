//! What an export seems to contain, by the guess of file(1).

use std::io::{self, Write};
use std::process::{Command, Stdio};

use nbd_blocking::Client;
use nbd_blocking::client::Error;

use crate::exit::Failure;
use crate::target::Target;

/// How many bytes are looked at: most formats tell in the first few.
const FIRST: u64 = 8192;

/// Has the first bytes of an export looked at.
pub(crate) fn content(target: &Target, client: &Client) -> Result<String, Failure> {
    let bytes = first_bytes(client).map_err(|error| target.explain(&error))?;
    file(&bytes).map_err(|error| {
        Failure::failed(format!(
            "cannot run file(1), which guesses the content: {error}; install it, or leave out --content"
        ))
    })
}

fn first_bytes(client: &Client) -> Result<Vec<u8>, Error> {
    let minimum = u64::from(client.block_size().minimum());
    let length = client.size().min(FIRST) / minimum * minimum;
    let mut bytes = vec![0; length as usize];
    client.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn file(bytes: &[u8]) -> io::Result<String> {
    let mut command = Command::new("file");
    command.args(["--brief", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may have seen enough before the end.
        let _enough = stdin.write_all(bytes);
    }
    let output = child.wait_with_output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

//! What an export seems to contain, by the guess of file(1).

use std::io::{self, Write};
use std::process::{Command, Stdio};

use nbd_blocking::Client;
use nbd_blocking::client::Error;
use nbd_engine::counted;

use crate::exit::Failure;
use crate::target::Target;

/// How many bytes are looked at: most formats tell in the first few.
const FIRST: u64 = 8192;

/// Has the first bytes of an export looked at.
pub(crate) fn content(target: &Target, client: &Client) -> Result<String, Failure> {
    let (size, minimum) = (client.size(), u64::from(client.export().block_size().minimum()));
    let length = readable(size, minimum).ok_or_else(|| {
        Failure::failed(format!(
            "cannot read the content: the export has {}, and the server reads no less than {minimum}",
            counted(size, "byte")
        ))
    })?;
    let bytes = first_bytes(client, length).map_err(|error| target.explain(&error))?;
    file(&bytes).map_err(|error| {
        Failure::failed(format!(
            "cannot run file(1), which guesses the content: {error}; install it, or leave out --content"
        ))
    })
}

/// How much has to be read for them, in whole blocks: `None` if the export is less than one. What is empty can be read.
fn readable(size: u64, minimum: u64) -> Option<u64> {
    let length = size.min(FIRST.next_multiple_of(minimum)) / minimum * minimum;
    (length > 0 || size == 0).then_some(length)
}

fn first_bytes(client: &Client, length: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; length as usize];
    client.read_exact_at(&mut bytes, 0)?;
    bytes.truncate(FIRST as usize);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_are_read_and_no_less_than_one() {
        for (size, minimum, length) in [
            (1 << 20, 1, Some(8192)),
            (1 << 20, 4096, Some(8192)),
            (1 << 20, 65536, Some(65536)),
            (70_000, 65536, Some(65536)),
            (1000, 512, Some(512)),
            (300, 512, None),
            (60_000, 65536, None),
            (0, 65536, Some(0)),
        ] {
            assert_eq!(readable(size, minimum), length, "{size} in blocks of {minimum}");
        }
    }
}

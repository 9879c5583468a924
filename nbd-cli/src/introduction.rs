//! What `nbd` without a command shows: command lines to try, which work as they stand.

use crate::stderr;

/// Command lines begin with two spaces; what they do stands behind `#`.
const TEXT: &str = "\
nbd serves disks over the network (Network Block Device), and reads, copies and measures those of any server. To try it:

  nbd info [ nbd serve memory:64M ]             # start a server, show what it serves, and stop it
  nbd serve disk=memory:64M                     # serve a disk in memory until Ctrl-C; then, in another terminal:
  nbd copy /etc/os-release nbd://127.0.0.1/disk # write a file to the disk
  nbd dump nbd://127.0.0.1/disk                 # show its first bytes
  nbd bench --time 2 nbd://127.0.0.1/disk       # measure how fast it is read

All commands: nbd --help. One of them: nbd COMMAND --help.
";

/// Shows it on standard error, since a command is missing.
pub(crate) fn show() {
    // The exit status remains when the terminal is gone.
    let _shown = stderr::write(TEXT.as_bytes(), None);
}

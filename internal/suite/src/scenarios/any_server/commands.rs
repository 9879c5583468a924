//! Every command.

use nbd_testkit::raw::Mode;

use crate::Setup;
use crate::every_command::every_command;

/// Whatever the disk of a program is advertised to do, it does, in each form.
pub fn every_command_on_any_server(setup: Setup) {
    let server = setup.serve_disk();
    for (seed, mode) in [Mode::Simple, Mode::Structured, Mode::Extended].into_iter().enumerate() {
        let mut client = server.client(mode);
        every_command(&mut client, seed as u64);
        client.finish();
    }
    server.stop();
}

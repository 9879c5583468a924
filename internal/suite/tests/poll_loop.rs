//! Those scenarios that any server passes, on an event loop of its own: the core, and nothing else of the project.

use std::process::Command;

use nbd_suite::Program;

const POLL_LOOP: Program = Program { command: || Command::new(env!("CARGO_BIN_EXE_poll_loop")) };

nbd_suite::suite_of_a_program!(crate::POLL_LOOP);

/// Its clients.
mod clients {
    macro_rules! clients {
        ($($module:ident $client:ident)*) => {
            $(
                mod $module {
                    nbd_suite::client_suite_of_a_program!(
                        nbd_suite::clients::$client,
                        crate::POLL_LOOP
                    );
                }
            )*
        };
    }

    clients! {
        blocking BlockingClient
        tokio_current_thread TokioClientCurrentThread
        tokio_multi_thread TokioClientMultiThread
        async_std AsyncStdClient
        smol SmolClient
        mio MioClient
    }
}

//! The scenarios that every adapter's client passes with every adapter's server, by what they are about.

/// Lists the scenarios: each is a public function of a module of this folder. Makes a macro of the list, which turns it
/// into tests. (`$` is passed in, since a macro that makes macros can't write it.)
macro_rules! client_scenarios {
    ($d:tt $($module:ident { $($name:ident),* $(,)? })*) => {
        $(mod $module; pub use $module::{$($name),*};)*

        /// Makes tests of all scenarios for a client and a server, by transport.
        #[macro_export]
        macro_rules! client_suite {
            ($d client:expr, $d server:expr) => {
                $crate::client_suite!(@transport tcp Tcp $d client, $d server);
                $crate::client_suite!(@transport unix Unix $d client, $d server);
            };
            (@transport $d module:ident $d transport:ident $d client:expr, $d server:expr) => {
                mod $d module {
                    $($(
                        #[test]
                        fn $name() {
                            let (client, server) = (&$d client, &$d server);
                            let transport = $crate::Transport::$d transport;
                            let scenario = $crate::client_scenarios::$name;
                            $crate::run_pair(client, server, transport, scenario);
                        }
                    )*)*
                }
            };
        }
    };
}

client_scenarios! {
    $
    commands {
        every_command_does_what_it_says,
        requests_from_several_threads,
        a_request_that_is_given_up_harms_no_other,
    }
    haggling { a_server_is_asked_before_an_export_is_entered }
}

//! The scenarios that every adapter's client passes with every adapter's server, by what they are about.

/// Lists the scenarios: each is a public function of a module of this folder. Makes macros of the list, which turn it
/// into tests. (`$` is passed in, since a macro that makes macros can't write it.)
macro_rules! client_scenarios {
    (
        $d:tt
        any_server { $($any_module:ident { $($any:ident),* $(,)? })* }
        adapters { $($module:ident { $($name:ident),* $(,)? })* }
        inside_of_tls {
            any_server { $($any_in_tls:ident),* $(,)? }
            adapters { $($in_tls:ident),* $(,)? }
        }
    ) => {
        /// Scenarios that need no more of a server than one disk.
        pub mod any_server {
            $(mod $any_module; pub use $any_module::{$($any),*};)*
        }
        $(mod $module; pub use $module::{$($name),*};)*

        /// Makes tests of all scenarios for a client and a server, by transport.
        #[macro_export]
        macro_rules! client_suite {
            ($d client:expr, $d server:expr) => {
                $crate::client_tests! {
                    $d client, $crate::Subject::Adapter(&$d server), [tcp Tcp, unix Unix],
                    [$($($crate::client_scenarios::any_server::$any => $any,)*)*
                     $($($crate::client_scenarios::$name => $name,)*)*]
                }
            };
        }

        /// Makes tests of the scenarios that can find something inside of TLS, for a client and a server.
        #[macro_export]
        macro_rules! client_suite_in_tls {
            ($d client:expr, $d server:expr) => {
                $crate::client_tests! {
                    $d client, $crate::Subject::Adapter(&$d server), [tls Tls],
                    [$($crate::client_scenarios::any_server::$any_in_tls => $any_in_tls,)*
                     $($crate::client_scenarios::$in_tls => $in_tls,)*]
                }
            };
        }

        /// Makes tests of the scenarios that need no more than a disk, for a client and a [`Program`](crate::Program).
        #[macro_export]
        macro_rules! client_suite_of_a_program {
            ($d client:expr, $d program:expr) => {
                $crate::client_tests! {
                    $d client, $crate::Subject::Program($d program), [tcp Tcp],
                    [$($($crate::client_scenarios::any_server::$any => $any,)*)*]
                }
            };
        }
    };
}

/// Makes a test of each function, for each transport.
#[doc(hidden)]
#[macro_export]
macro_rules! client_tests {
    ($client:expr, $server:expr, [$($module:ident $transport:ident),*], $list:tt) => {
        $($crate::client_tests! { @transport $module $transport $client, $server, $list })*
    };
    (@transport $module:ident $transport:ident $client:expr, $server:expr,
     [$($scenario:path => $name:ident,)*]) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    let transport = $crate::Transport::$transport;
                    $crate::run_pair(&$client, $server, transport, $scenario);
                }
            )*
        }
    };
}

client_scenarios! {
    $
    any_server {
        many {
            requests_from_several_threads,
            more_requests_than_may_be_in_flight,
            two_hundred_clients,
        }
    }
    adapters {
        commands {
            every_command_does_what_it_says,
            errors_of_an_export_are_told,
        }
        negotiation {
            a_server_is_asked_before_an_export_is_entered,
            an_export_is_chosen_and_entered_on_one_connection,
            every_option_can_be_sent_by_hand,
            an_export_is_entered_by_its_name_alone,
            entering_makes_as_many_connections_as_are_configured,
        }
        views {
            reads_show_data_and_holes,
            the_status_of_a_range_is_reported_run_by_run,
        }
        order { replies_come_in_any_order }
        splitting {
            long_requests_are_split, others_go_between_the_parts_of_a_long_request,
            the_rest_of_a_long_request_is_dropped_with_it
        }
        vast { extents_have_64_bits, ranges_have_64_bits }
        connections {
            writes_are_seen_by_all_connections_after_a_flush,
            a_server_with_less_room_is_used_by_fewer_connections,
            a_client_over_a_stream_of_ones_own,
            a_client_connects_again_after_the_server_went_away,
        }
        giving_up {
            a_request_that_is_given_up_harms_no_other,
            a_request_that_times_out_harms_no_other,
        }
        reconnect {
            a_restarted_server_is_a_pause,
            requests_in_flight_are_sent_again,
            a_flush_reports_what_a_crash_may_have_lost,
            kept_writes_survive_a_crash,
            requests_go_on_by_the_connections_that_there_are,
            another_export_is_not_written_to,
            a_client_gives_up_within_its_bounds,
            a_request_waits_for_a_connection_within_its_deadline,
            giving_up_a_reconnecting_client_ends_at_once,
        }
        endings {
            a_server_that_shuts_down_answers_what_is_in_flight,
            a_connection_that_is_lost_says_what_was_sent,
        }
    }
    inside_of_tls {
        any_server {
            requests_from_several_threads,
            more_requests_than_may_be_in_flight,
        }
        adapters {
            every_command_does_what_it_says,
            errors_of_an_export_are_told,
            a_server_is_asked_before_an_export_is_entered,
            entering_makes_as_many_connections_as_are_configured,
            replies_come_in_any_order,
            long_requests_are_split,
            a_client_connects_again_after_the_server_went_away,
            a_request_that_is_given_up_harms_no_other,
            a_request_that_times_out_harms_no_other,
            a_server_that_shuts_down_answers_what_is_in_flight,
            a_connection_that_is_lost_says_what_was_sent,
        }
    }
}

/// Makes tests of all scenarios for a client with the named servers: that of `nbd-blocking`, the reference, and that of
/// its own adapter. All servers share one engine, so that further pairs would find nothing new; nor would the second one
/// inside of TLS.
#[macro_export]
macro_rules! client_suites {
    ($client:expr, $module:ident $server:ident $(, $more:ident $more_servers:ident)*) => {
        mod $module {
            $crate::client_suite!($client, $crate::adapters::$server);
            $crate::client_suite_in_tls!($client, $crate::adapters::$server);
        }
        $(
            mod $more {
                $crate::client_suite!($client, $crate::adapters::$more_servers);
            }
        )*
    };
}

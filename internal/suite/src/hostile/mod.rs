//! What every adapter's client does with servers that break the rules, play dumb or are slow (C-ROB-07).
//!
//! The servers are scripts ([`nbd_testkit::scripted`]). That the protocol's machine finds each fault is shown by tests of
//! its own; here it is shown that every client says so with the right error, goes on where the specification lets it,
//! leaves where it does not, and never waits beyond its deadlines, whatever moves its bytes.

mod table;

/// Lists the scenarios: each is a public function of a module of this folder. Makes a macro of the list, which turns it
/// into tests. (`$` is passed in, since a macro that makes macros can't write it.)
macro_rules! hostile_scenarios {
    ($d:tt $($module:ident { $($name:ident),* $(,)? })*) => {
        $(mod $module; pub use $module::{$($name),*};)*

        /// Makes tests of all scenarios with hostile servers for a client, by transport.
        #[macro_export]
        macro_rules! hostile_suite {
            ($d client:expr) => {
                $crate::hostile_suite!(@transport tcp Tcp $d client);
                $crate::hostile_suite!(@transport unix Unix $d client);
            };
            (@transport $d module:ident $d transport:ident $d client:expr) => {
                mod $d module {
                    $($(
                        #[test]
                        fn $name() {
                            let transport = $crate::Transport::$d transport;
                            let scenario = $crate::hostile::$name;
                            $crate::run_client(&$d client, transport, scenario);
                        }
                    )*)*
                }
            };
        }
    };
}

hostile_scenarios! {
    $
    greeting {
        what_is_no_server_is_told_apart,
        faults_in_the_option_phase_end_the_session,
        refusals_are_told_and_the_server_is_left,
    }
    facts {
        impossible_sizes_are_refused_and_hints_corrected,
        an_export_may_have_any_size,
        without_multi_conn_there_is_one_connection,
        a_flush_covers_every_connection_that_wrote,
        a_connection_without_multi_conn_is_no_further_one,
    }
    replies {
        faults_of_replies_end_the_connection,
        errors_of_requests_leave_the_connection,
        what_is_unknown_but_harmless_is_ignored,
        data_that_nobody_asked_for_ends_the_connection,
        a_reply_that_does_not_end_holds_up_no_other,
    }
    chunks { reads_that_fail_in_part_show_the_rest }
    status {
        faults_of_extents_end_the_connection,
        extents_may_fall_short_or_reach_past,
    }
    cuts { a_session_may_be_cut_at_every_byte }
    endless {
        endless_answers_to_options_end,
        endless_chunks_end,
    }
    silence {
        silence_in_the_option_phase_is_given_up,
        drops_in_the_option_phase_are_given_up,
        a_request_that_is_not_answered_is_given_up_and_others_go_on,
        half_a_reply_is_given_up,
        drops_of_a_reply_are_given_up,
        leaving_does_not_wait_for_what_was_given_up,
        a_server_that_owes_replies_and_is_silent_is_replaced,
    }
    pressure {
        an_early_error_leaves_the_rest_of_the_payload_in_step,
        a_server_that_does_not_read_is_given_up,
        a_client_that_is_dropped_does_not_wait_for_a_server_that_does_not_read,
    }
}

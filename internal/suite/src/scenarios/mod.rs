//! The scenarios, by what they are about.

mod tls;

/// Lists the scenarios: each is a public function of a module of this folder. Makes two macros of the list, which turn
/// it into tests. (`$` is passed in, since a macro that makes macros can't write it.)
macro_rules! scenarios {
    (
        $d:tt
        any_server { $($any_module:ident { $($any:ident),* $(,)? })* }
        adapters { $($module:ident { $($name:ident),* $(,)? })* }
        inside_of_tls {
            any_server { $($any_in_tls:ident),* $(,)? }
            adapters { $($in_tls:ident),* $(,)? }
            alone { $($tls_alone:ident),* $(,)? }
        }
    ) => {
        pub use self::tls::{$($tls_alone),*};

        /// Scenarios that need no more of a server than one disk.
        pub mod any_server {
            $(mod $any_module; pub use $any_module::{$($any),*};)*
        }
        $(mod $module; pub use $module::{$($name),*};)*

        /// Makes tests of all scenarios for an adapter, by transport. Inside of TLS it is those that can find something there.
        #[macro_export]
        macro_rules! suite {
            ($d adapter:expr) => {
                $crate::tests!(
                    $crate::Subject::Adapter(&$d adapter),
                    [$($($crate::scenarios::any_server::$any => $any,)*)*
                     $($($crate::scenarios::$name => $name,)*)*]
                );
                $crate::tests!(
                    @transport tls Tls $crate::Subject::Adapter(&$d adapter),
                    [$($crate::scenarios::any_server::$any_in_tls => $any_in_tls,)*
                     $($crate::scenarios::$in_tls => $in_tls,)*
                     $($crate::scenarios::$tls_alone => $tls_alone,)*]
                );
            };
        }

        /// Makes tests of the scenarios that any server passes for a [`Program`](crate::Program).
        #[macro_export]
        macro_rules! suite_of_a_program {
            ($d program:expr) => {
                $crate::tests!(
                    @transport tcp Tcp $crate::Subject::Program($d program),
                    [$($($crate::scenarios::any_server::$any => $any,)*)*]
                );
            };
        }
    };
}

/// Makes a test of each function, for TCP and for Unix sockets.
#[doc(hidden)]
#[macro_export]
macro_rules! tests {
    ($subject:expr, $list:tt) => {
        $crate::tests!(@transport tcp Tcp $subject, $list);
        $crate::tests!(@transport unix Unix $subject, $list);
    };
    (@transport $module:ident $transport:ident $subject:expr, [$($scenario:path => $name:ident,)*]) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    $crate::run($subject, $crate::Transport::$transport, $scenario);
                }
            )*
        }
    };
}

scenarios! {
    $
    any_server {
        options {
            every_form_is_negotiated,
            an_export_is_found_by_any_option,
            options_in_one_write_are_answered_in_order,
        }
        commands { every_command_on_any_server }
        splitting {
            a_session_split_at_every_byte_is_the_same,
            a_session_may_end_at_every_byte,
        }
        leaving {
            half_closed_clients_get_all_replies,
            clients_that_vanish_leave_others_alone,
        }
        pressure { a_client_that_does_not_read_is_held_back }
        many {
            writes_are_visible_to_all_connections_after_a_flush,
            two_hundred_connections,
        }
    }
    adapters {
        exports {
            exports_are_listed_and_found_by_name,
            every_command_on_every_way,
            large_payloads_on_every_way,
        }
        order {
            replies_come_in_any_order,
            a_slow_request_holds_up_no_other,
            a_slow_export_holds_up_no_other,
            a_disconnect_waits_for_requests_in_flight,
            a_half_close_waits_for_requests_in_flight,
            a_disconnect_has_all_carried_out_for_a_client_that_reads_no_replies,
        }
        limits {
            connections_above_the_limit_wait,
            connections_above_the_limit_are_refused,
            one_connection_is_not_announced_as_several,
            listeners_share_the_limit,
            requests_in_flight_are_limited,
            bytes_in_flight_are_limited,
            replies_that_are_not_read_count_as_in_flight,
        }
        deadlines {
            the_handshake_has_a_deadline,
            the_handshake_deadline_does_not_wait_for_silence,
            a_long_list_extends_the_handshake,
            the_drain_has_a_deadline,
            a_drain_does_not_wait_for_clients_that_do_not_read,
            a_drain_does_not_wait_for_the_rest_of_a_request,
        }
        stalls {
            requests_that_are_never_finished_are_given_up,
            replies_that_are_never_received_are_given_up,
            clients_that_have_disconnected_are_given_up_sooner,
            an_idle_client_makes_room_for_another,
            a_hanging_disk_holds_up_no_other_export,
        }
        drain {
            requests_in_flight_finish_and_later_ones_are_refused,
            later_requests_are_not_answered_by_a_server_that_hangs_up,
            idle_clients_are_sent_away,
            the_clients_of_a_withdrawn_export_are_sent_away_and_others_stay,
            a_client_that_leaves_when_it_is_told_to_was_sent_away,
            a_server_that_is_gone_has_dropped_its_exports,
            a_client_that_says_that_it_leaves_need_not_wait_for_an_answer,
            a_server_without_clients_ends,
            nobody_connects_after_the_shutdown,
            the_option_phase_ends_with_the_shutdown,
        }
        durability {
            emulated_fua_flushes_once_after_the_write,
            native_fua_is_passed_down_and_nothing_is_flushed,
            fua_is_not_offered_without_flush_or_native_support,
            flush_covers_writes_of_every_connection,
        }
        faults {
            a_panic_of_an_export_fails_the_request_alone,
            a_read_of_the_wrong_length_is_eio,
            pieces_of_no_length_do_no_harm,
            extents_that_tell_nothing_are_eio,
            errors_of_an_export_reach_the_client_with_their_text,
            an_export_that_shuts_down_ends_its_connections_alone,
        }
        vanishing {
            a_client_that_vanishes_at_any_byte_frees_its_place,
            a_client_that_vanishes_at_any_byte_of_the_replies_frees_its_place,
            a_client_that_vanishes_while_requests_run_frees_its_place,
        }
        metrics {
            what_is_counted_is_what_clients_saw,
            requests_in_flight_are_reported,
            counters_go_no_further_than_they_can,
            a_client_is_disconnected_and_others_stay,
        }
        visits { an_export_learns_which_client_enters_and_how_it_leaves }
        listening {
            all_forms_of_an_address_are_listened_on,
            an_address_that_is_of_no_use_is_refused_with_a_remedy,
            a_listener_is_closed_and_the_rest_goes_on,
            a_server_without_listeners_serves_on,
            a_server_that_has_ended_listens_nowhere,
            a_listener_is_closed_while_a_client_waits_for_admission,
            a_socket_that_took_the_path_is_left_alone_by_a_close,
            the_backlog_reaches_the_system,
        }
        places {
            listeners_of_ones_own_are_accepted_from,
            a_stream_of_ones_own_is_served,
            an_export_learns_the_peer_of_a_stream_of_ones_own,
            a_stream_of_ones_own_is_refused_by_a_full_server,
            a_stream_of_ones_own_waits_for_room,
            nothing_of_ones_own_is_taken_after_the_shutdown,
        }
    }
    inside_of_tls {
        any_server {
            options_in_one_write_are_answered_in_order,
            every_command_on_any_server,
            half_closed_clients_get_all_replies,
            clients_that_vanish_leave_others_alone,
            a_client_that_does_not_read_is_held_back,
            writes_are_visible_to_all_connections_after_a_flush,
            two_hundred_connections,
        }
        adapters {
            large_payloads_on_every_way,
            replies_come_in_any_order,
            a_slow_request_holds_up_no_other,
            a_disconnect_waits_for_requests_in_flight,
            a_half_close_waits_for_requests_in_flight,
            connections_above_the_limit_are_refused,
            requests_in_flight_are_limited,
            replies_that_are_not_read_count_as_in_flight,
            the_handshake_has_a_deadline,
            the_drain_has_a_deadline,
            a_drain_does_not_wait_for_the_rest_of_a_request,
            replies_that_are_never_received_are_given_up,
            clients_that_have_disconnected_are_given_up_sooner,
            requests_in_flight_finish_and_later_ones_are_refused,
            idle_clients_are_sent_away,
            the_clients_of_a_withdrawn_export_are_sent_away_and_others_stay,
            the_option_phase_ends_with_the_shutdown,
            a_client_that_vanishes_while_requests_run_frees_its_place,
            what_is_counted_is_what_clients_saw,
        }
        alone {
            a_handshake_that_stalls_ends_at_the_deadline,
            records_may_be_cut_anywhere,
            records_that_are_never_finished_are_given_up,
            keys_may_be_renewed_at_any_time,
        }
    }
}

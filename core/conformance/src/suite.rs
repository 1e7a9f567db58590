//! The list of all cases, and what runs them.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use crate::bench::{Bench, Outcome};
use crate::world::World;

/// One case: its numbers, its chapter and what it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaseInfo {
    /// Numbers in the table.
    pub numbers: &'static [u16],
    /// The chapter, which is the file it stands in.
    pub chapter: &'static str,
    /// The behaviour, in words joined by underscores.
    pub name: &'static str,
}

/// Capacities that a domain has to have for a case; [`Default`] is what most cases are content with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Connections.
    pub connections: usize,
    /// Messages that wait at one connection.
    pub messages: usize,
    /// Slices of one pool.
    pub slices: usize,
    /// Names, and as many claims to them.
    pub names: usize,
    /// Matches.
    pub matches: usize,
    /// Buses.
    pub buses: usize,
    /// Awaited replies.
    pub calls: usize,
}

impl Default for Needs {
    fn default() -> Self {
        Self { connections: 16, messages: 32, slices: 72, names: 8, matches: 24, buses: 4, calls: 16 }
    }
}

impl CaseInfo {
    /// What the case needs.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        if self.chapter == "quota" {
            (needs.messages, needs.slices, needs.calls) = (600, 1300, 130);
        }
        match self.name {
            "a_user_has_at_most_16_buses" => needs.buses = 17,
            "a_user_has_at_most_1024_connections" => {
                (needs.connections, needs.messages, needs.slices) = (1026, 4, 8);
            }
            "a_query_that_does_not_fit_is_refused" | "a_pool_full_of_unfreed_slices_is_full" => {
                needs.slices = 300
            }
            "adjacent_free_slices_become_one" => needs.connections = 80,
            "a_reply_that_failed_cannot_be_repeated"
            | "a_broadcast_to_a_full_receiver_counts_as_lost"
            | "what_does_not_fit_a_service_is_lost"
            | "a_full_service_loses_everything" => (needs.messages, needs.slices) = (300, 700),
            "a_connection_has_at_most_4096_matches" => needs.matches = 4097,
            "a_connection_has_at_most_256_names" => needs.names = 260,
            _ => {}
        }
        needs
    }
}

/// Cases that commands alone cannot bring about, with the reason.
pub const NOT_EXPRESSED: &[(u16, &str)] = &[
    (160, "needs the receiver to leave between lookup and delivery, which no command order brings about"),
    (353, "needs connections in several user namespaces"),
    (354, "needs connections in several process-id namespaces"),
];

/// Makes a `#[test]` for each case. `$make` is a function or closure that takes the case's [`CaseInfo`] and
/// returns a new world for it.
///
/// Cases that cannot be expressed print one line each, `skipped: ...`.
#[macro_export]
macro_rules! conformance_tests {
    ($make:expr) => {
        $crate::__conformance_list! { @tests [$make] }

        #[test]
        fn cases_beyond_commands_are_reported() {
            $crate::report_not_expressed();
        }
    };
}

/// The list of cases, handed to the rules below.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_list {
    (@$mode:ident $world:tt) => {
        $crate::__conformance_expand! { @$mode $world
            framing {
                [1] an_unaligned_argument_is_a_fault;
                [2] a_size_of_one_is_refused;
                [3] a_size_below_the_record_is_refused;
                [4] a_size_above_32_kib_is_too_large;
                [5] the_largest_argument_is_looked_at;
                [6] no_argument_is_a_fault;
                [7] unknown_hello_flags_are_refused;
                [8] unknown_flags_are_refused;
                [9] an_unknown_request_is_refused;
                [10] all_bits_of_the_request_count;
                [11] a_fresh_endpoint_receives_nothing;
                [12] hello_is_for_endpoints;
                [13] bus_make_is_for_the_control_file;
                [14] hello_is_said_once;
                [15] a_bus_owner_sends_nothing;
                [16] a_connection_has_no_endpoint_policy;
                [17] an_endpoint_owner_receives_nothing;
                [18] an_item_holds_its_own_header;
                [19] an_item_ends_within_the_command;
                [20] a_string_ends_with_nul;
                [21] a_string_has_one_nul;
                [22] the_last_padding_may_be_left_out;
                [23] the_last_padding_may_be_included;
                [24] stray_bytes_are_refused;
                [25] foreign_items_are_refused;
                [26] a_single_item_is_given_once;
                [27] a_mandatory_item_is_given;
                [28] a_failing_command_clears_its_return_flags;
                [29] the_kind_of_connection_is_checked_first;
            }
            negotiation {
                [30] hello_can_be_asked_first;
                [31] bus_make_can_be_asked_without_items;
                [32] asking_byebye_disconnects_nobody;
                [33] asking_recv_takes_nothing;
                [34] an_unknown_flag_is_refused_even_then;
                [35] unknown_item_types_are_cleared;
                [36] items_can_be_asked_about_while_working;
                [37] a_probe_is_whole_words;
                [38] send_can_be_asked_without_a_message;
                [39] send_can_be_asked_about_messages;
                [40] a_message_alone_is_not_asked;
                [41] a_probe_inside_a_message_is_refused;
                [400] every_command_tells_its_flags;
                [456] only_send_clears_its_return_flags_when_asked;
            }
            buses {
                [42] a_bus_name_starts_with_the_uid;
                [43] a_bus_name_has_name_characters;
                [44] a_bus_name_does_not_end_in_a_hyphen;
                [45] a_bus_name_has_the_makers_uid;
                [46, 47] a_bus_name_has_at_most_63_characters;
                [48] a_bus_appears_under_its_name;
                [49, 51] a_bus_name_is_taken_once;
                [50] a_handle_makes_one_bus;
                [52] filters_have_a_sane_size;
                [53] filters_have_a_hash;
                [54] a_bus_needs_name_and_filter;
                [55] a_bus_requires_no_metadata;
                [56] the_owners_mask_is_checked;
                [57, 58] a_user_has_at_most_16_buses;
                [59] access_flags_show_in_the_modes;
                [60] a_bus_dies_with_its_handle;
                [61] a_handle_may_outlive_its_bus;
                [62, 63] a_bus_tells_its_name;
                [64] a_bus_answers_known_masks_only;
                [65] a_bus_tells_about_its_makers_process;
                [401] filters_follow_their_own_bus;
            }
            endpoints {
                [66] an_endpoint_name_has_at_most_63_characters;
                [67] an_endpoint_name_has_the_makers_uid;
                [68] an_endpoint_appears_beside_the_default_one;
                [69] an_endpoint_name_is_taken_once;
                [70, 71] strangers_make_no_endpoints;
                [72] a_custom_endpoint_makes_no_endpoints;
                [73] an_endpoint_is_made_without_policy;
                [74, 75] access_flags_decide_who_opens;
                [76, 77] a_custom_endpoint_has_ordinary_connections_only;
                [78] ids_are_not_filtered;
                [79, 80, 81, 82, 83, 84] names_show_as_far_as_policy_says;
                [85, 86] talking_needs_more_than_seeing;
                [87] endpoint_policy_does_not_replace_that_of_the_bus;
                [88] owning_needs_the_bus_policy_too;
                [89] access_without_a_name_changes_nothing;
                [90] a_name_given_twice_changes_nothing;
                [91] an_empty_update_empties_the_policy;
                [92] an_endpoint_dies_with_its_handle;
                [404] ids_are_listed_and_names_are_not;
                [405] broadcasts_need_endpoint_policy;
                [406] others_talk_to_a_custom_endpoint_as_ever;
                [407] a_custom_endpoint_has_no_faked_identity;
                [457] endpoints_that_come_and_go_leave_nothing_behind;
            }
            hello {
                [93] a_pool_is_whole_pages;
                [94] hello_reports_the_bus;
                [95] hello_overwrites_the_offset;
                [96] activators_and_policy_holders_need_a_name;
                [97] an_ordinary_connection_brings_no_name;
                [98] a_connection_is_of_one_kind;
                [99] strangers_do_not_monitor;
                [100] strangers_hold_no_policy;
                [101] strangers_do_not_activate;
                [102] a_policy_name_is_checked;
                [103] a_name_has_one_activator;
                [104] a_held_policy_keeps_activators_out;
                [105] only_owners_pass_for_others;
                [106] unset_credentials_stay_unset;
                [107] faked_processes_have_to_exist;
                [108] metadata_masks_are_checked;
                [109] a_user_has_at_most_1024_connections;
                [110] a_description_is_checked;
                [111] policy_of_an_ordinary_connection_is_ignored;
                [112] a_new_receive_mask_counts_from_the_next_message;
                [113] an_unknown_mask_changes_nothing;
                [114] an_ordinary_connection_has_no_policy;
                [115] an_activator_changes_its_receive_mask_only;
                [116] a_policy_holder_changes_no_mask;
                [117] a_policy_holder_has_one_name;
                [118] an_empty_update_succeeds;
                [119] a_queued_message_keeps_one_from_leaving;
                [120] one_leaves_once;
                [121] an_unfreed_slice_keeps_nobody;
                [122] only_ordinary_connections_leave;
                [123] who_left_is_gone_for_every_command;
            }
            pool {
                [124] nothing_published_cannot_be_freed;
                [125] beyond_the_pool_nothing_can_be_freed;
                [126] the_empty_value_can_be_freed;
                [127] a_slice_is_freed_once;
                [128] the_inside_of_a_slice_cannot_be_freed;
                [129] a_queued_message_cannot_be_freed;
                [130] a_peeked_and_freed_message_is_received_where_it_was;
                [131] a_peeked_slice_outlives_its_dropped_message;
                [132] queries_take_slices_of_their_own;
                [133] a_pool_is_mapped_for_reading_only;
                [134] a_mapping_stays_within_the_pool;
                [135] a_pool_full_of_unfreed_slices_is_full;
                [136] adjacent_free_slices_become_one;
            }
            message {
                [137] plain_message_arrives_with_its_cookie_and_sender;
                [138] unknown_id_is_refused;
                [139] an_activator_has_no_address_of_its_own;
                [140] monitors_and_policy_holders_have_no_address;
                [141] no_destination_at_all_is_refused;
                [142] a_name_without_owner_is_not_found;
                [143] a_malformed_destination_name_is_refused;
                [144] name_and_id_have_to_agree;
                [145] no_auto_start_refuses_an_activator;
                [146] no_auto_start_accepts_an_ordinary_owner;
                [147] source_is_the_sender_or_left_open;
                [148] only_the_kernel_sends_kernel_payload;
                [149] a_filter_makes_sense_on_signals_only;
                [150] a_message_without_items_is_its_header;
                [151] a_message_to_oneself_arrives;
                [152] payload_at_a_kernel_address_is_a_fault;
                [153] unreadable_payload_charges_nobody;
                [154] one_vector_holds_up_to_two_mebibytes;
                [155] vectors_may_or_may_not_be_limited_in_sum;
                [156] vectors_lie_one_behind_the_other;
                [157] a_run_of_zeros_takes_no_room;
                [158] payload_in_the_slice_is_for_receiving_only;
                [159] two_destination_names_are_refused;
                [161] name_and_filter_stay_in_the_message;
                [162] reported_size_is_the_whole_slice;
                [408] long_messages_of_items_are_fine;
                [409] header_fields_arrive_as_sent;
                [410] what_was_sent_does_not_change;
                [411] items_keep_their_order;
                [412] a_fresh_message_has_no_bytes_of_an_older_one;
            }
            fds {
                [163] bus_handles_are_not_passed_on;
                [164] unix_sockets_are_not_passed_on;
                [165] a_closed_descriptor_is_refused;
                [166] a_path_descriptor_is_passed;
                [167] one_message_carries_up_to_16_descriptors;
                [168] one_user_has_up_to_16_descriptors_in_flight;
                [169] a_receiver_has_to_accept_descriptors;
                [170] a_memfd_needs_no_acceptance;
                [171] a_passed_descriptor_outlives_the_senders;
                [172] broadcasts_carry_no_descriptors;
                [173] broadcasts_carry_memfds;
                [174] one_message_carries_up_to_16_memfds;
                [175, 176] descriptors_and_memfds_have_their_own_limits;
                [177] memfds_in_flight_are_not_counted;
                [178] only_sealed_memfds_are_payload;
                [179] a_memfd_range_lies_in_its_file;
                [180] an_empty_list_of_descriptors_is_no_list;
                [181] installed_descriptors_close_on_exec;
                [182] a_receiver_at_its_limit_gets_the_rest;
                [183] peeking_installs_nothing;
                [184] a_signal_with_descriptors_vanishes_if_not_accepted;
            }
            recv {
                [185] an_empty_queue_says_try_again;
                [186, 187, 188] the_most_urgent_message_comes_first;
                [189] equal_priorities_leave_in_order_of_sending;
                [190] dropping_by_priority_is_refused;
                [191] a_dropped_message_is_gone;
                [192] dropping_wins_over_peeking;
                [193] a_peeked_message_stays_where_it_is;
                [194] a_policy_holder_receives_nothing;
                [195] polling_tells_of_messages_and_losses;
                [196] a_lost_broadcast_is_reported_once;
                [413] peeking_reports_losses_too;
                [414] peeking_by_priority_shows_the_most_urgent;
                [415] the_whole_range_of_priorities_is_in_order;
                [416] a_long_queue_keeps_its_order;
            }
            quota {
                [197, 198] a_user_queues_up_to_256_messages;
                [199] large_messages_leave_room_for_small_ones;
                [200] a_message_takes_up_to_a_sixth_of_the_pool;
                [201] a_second_user_gets_a_third_of_the_rest;
                [202] notifications_have_a_quota_of_their_own;
                [203] a_full_pool_charges_nobody;
                [204] a_caller_has_at_most_128_calls_open;
                [205] an_unheard_call_counts_beyond_its_deadline;
                [206] an_activators_queue_is_limited_too;
                [402] a_refused_message_leaves_the_quota_alone;
            }
            calls {
                [207] a_call_needs_a_deadline;
                [208] a_signal_is_no_call;
                [209] a_call_needs_no_cookie;
                [210] a_reply_that_nobody_awaits_is_refused;
                [211] only_the_callee_may_reply;
                [212] a_call_is_answered_once;
                [213] a_callee_may_answer_whom_it_may_not_call;
                [214] of_equal_cookies_the_newest_is_answered_first;
                [215] a_signal_is_no_reply;
                [216] each_deadline_is_reported_in_its_turn;
                [217] a_call_too_late_is_delivered_and_reported;
                [218] a_reply_too_late_is_refused;
                [219] a_callee_that_dies_is_reported;
                [220] a_callee_that_dies_unheard_is_reported_once;
                [221] a_dropped_call_is_reported;
                [222] a_caller_that_left_cannot_be_answered;
                [223] a_reply_that_failed_cannot_be_repeated;
                [417] a_late_deadline_does_not_hold_up_an_early_one;
                [418] a_deadline_beyond_all_time_never_comes;
                [419] a_callee_may_be_the_caller;
                [420] a_call_that_was_not_delivered_awaits_nothing;
                [421] a_reply_may_go_to_a_name;
                [458] everybody_who_waits_hears_of_a_death;
            }
            sync {
                [224] only_calls_wait;
                [225] the_reply_passes_by_the_queue;
                [226] a_wrong_reply_does_not_end_the_wait;
                [227] the_wait_ends_at_the_deadline;
                [228] a_passed_deadline_delivers_nothing;
                [229] an_interrupted_wait_resumes;
                [230] an_interrupted_wait_may_end;
                [231] a_callee_that_closes_breaks_the_call;
                [232] a_callee_that_leaves_breaks_the_call;
                [233] a_caller_that_leaves_ends_its_wait;
                [234] a_cancel_descriptor_ends_the_wait;
                [235] a_quiet_cancel_descriptor_changes_nothing;
                [236] a_cancel_descriptor_can_be_waited_for;
                [237] a_reply_with_descriptors_needs_a_caller_that_takes_them;
                [238] a_call_with_descriptors_needs_a_callee_that_takes_them;
                [239] a_malformed_reply_does_not_end_the_wait;
                [240] a_callee_that_drops_breaks_the_call;
                [422] a_reply_may_come_while_interrupted;
                [423] a_reply_to_an_interrupted_call_leaks_nothing;
                [424] a_reply_brings_descriptors;
                [425] a_reply_that_does_not_fit_ends_the_call;
                [426] a_readable_cancel_descriptor_ends_the_wait_at_once;
                [427] a_waiting_caller_goes_on_receiving;
                [428] a_bus_that_dies_ends_the_wait;
                [459] one_connection_waits_for_several_replies;
            }
            matches {
                [241] a_broadcast_is_a_signal;
                [242] a_broadcast_has_a_filter;
                [243] a_broadcast_is_no_call;
                [244] a_broadcast_has_no_destination_name;
                [245] a_filter_has_the_size_of_the_bus;
                [246] without_a_match_nothing_is_heard;
                [247] a_match_without_rules_hears_everybody;
                [248] all_bits_of_the_mask_have_to_be_set;
                [249] the_generation_selects_the_mask;
                [250] a_late_generation_uses_the_last_mask;
                [251] a_mask_is_a_multiple_of_the_filter;
                [252] a_new_connection_is_announced;
                [253] a_leaving_connection_is_announced;
                [254] a_match_is_replaced_by_cookie;
                [255] a_new_name_is_announced;
                [256] a_vanishing_name_is_announced;
                [257] a_changed_owner_is_announced;
                [258] a_rule_for_nobody_never_fires;
                [259] mixed_rules_hear_nothing;
                [260] a_sender_rule_selects_the_sender;
                [261] a_destination_rule_selects_by_address;
                [262] a_name_rule_selects_the_holder;
                [263] matches_of_a_cookie_go_together;
                [264] a_malformed_name_rule_is_refused;
                [265] a_connection_has_at_most_4096_matches;
                [266] a_monitor_has_no_matches;
                [267] a_unicast_signal_needs_a_match;
                [268] a_signal_to_an_activator_vanishes;
                [269] a_plain_message_needs_no_match;
                [270] a_broadcast_to_a_full_receiver_counts_as_lost;
                [429] a_probe_in_a_match_is_no_rule;
                [430] all_rules_of_a_match_have_to_pass;
                [431] two_masks_in_one_match_have_to_pass_both;
                [432] any_match_is_enough_and_brings_one_copy;
                [433] a_full_mask_needs_a_full_filter;
                [434] a_match_without_rules_hears_notifications;
                [435] a_rule_may_name_both_owners;
                [436] a_failed_hello_is_announced_and_taken_back;
                [437] leaving_is_announced_in_order;
                [438] an_activator_is_announced_before_its_name;
                [439] a_broadcast_is_heard_in_one_order;
                [460] names_in_rules_count_to_the_last_byte;
                [461] removed_matches_leave_nothing_behind;
            }
            names {
                [271] malformed_names_cannot_be_acquired;
                [272] elements_follow_their_syntax;
                [273] a_name_has_at_most_255_bytes;
                [274] a_free_name_is_acquired;
                [275] a_released_name_is_gone;
                [276] a_name_of_others_cannot_be_released;
                [277] releasing_a_malformed_name_finds_nothing;
                [278] a_taken_name_is_refused;
                [279] waiting_for_a_taken_name_is_possible;
                [280] a_released_name_passes_to_the_first_waiter;
                [281] an_owner_that_allows_it_is_replaced;
                [282] a_replaced_owner_that_queues_waits_first;
                [283] an_owner_that_does_not_allow_it_stays;
                [284] acquiring_a_held_name_again_changes_no_owner;
                [285] acquiring_again_stores_the_new_flags;
                [286] a_waiter_that_asks_again_keeps_its_place;
                [287] a_waiter_that_asks_without_queueing_leaves;
                [288] a_waiter_that_replaces_passes_earlier_ones;
                [289] a_waiter_leaves_without_notice;
                [290] a_connection_has_at_most_256_names;
                [291] a_stranger_needs_policy_to_own;
                [292] only_ordinary_connections_acquire;
                [293] a_leaving_owner_hands_over_before_it_is_gone;
                [294] queued_messages_stay_with_the_former_owner;
                [462] names_that_come_and_go_leave_nothing_behind;
            }
            activators {
                [295] an_activator_owns_its_name_at_once;
                [296] a_message_to_its_name_wakes_it;
                [297] a_service_takes_over_what_waits;
                [298] behind_a_service_it_waits_in_the_list;
                [299] a_leaving_service_gives_back_what_waits;
                [300] messages_by_id_stay_with_the_service;
                [301] what_does_not_fit_a_service_is_lost;
                [302] a_full_service_loses_everything;
                [303] descriptors_do_not_move_to_who_takes_none;
                [304] a_call_is_answered_by_the_service;
                [305] who_gave_the_name_away_answers_no_more;
                [306] the_next_service_may_answer;
                [307] a_dying_activator_takes_its_name_along;
                [308] behind_a_service_it_dies_quietly;
                [309] strangers_do_not_wake_it;
                [310] broadcasts_do_not_reach_it;
                [440] a_waiting_call_follows_the_name;
                [441] moved_messages_line_up_behind;
                [442] a_moved_descriptor_still_works;
                [443] a_moved_message_frees_its_room;
                [444] an_activator_may_come_after_the_service;
                [445] a_waiter_comes_before_the_activator;
            }
            policy {
                [311] strangers_do_not_talk_to_owners;
                [312] connections_of_one_user_talk;
                [313] broadcasts_go_down_only;
                [314] strangers_do_not_hear_each_other;
                [315] everybody_may_own;
                [316] a_group_may_own;
                [317] a_user_may_own;
                [318] talking_is_not_owning;
                [319] one_matching_record_is_enough;
                [320] policy_lets_strangers_talk;
                [321] seeing_is_not_talking;
                [322] owning_includes_talking;
                [323] access_taken_back_counts_at_once;
                [324] access_goes_with_its_holder;
                [325] a_policy_name_is_held_once;
                [326] a_failed_update_keeps_the_former_policy;
                [327] access_to_one_name_reaches_its_holder;
                [328] a_wildcard_covers_one_element;
                [329] an_exact_entry_hides_the_wildcard;
                [330] unknown_access_is_refused;
                [331] rights_are_those_of_opening;
                [332] a_waiting_name_grants_nothing;
                [446] a_signal_needs_a_receiver_that_may_talk_back;
                [447] broadcasts_follow_policy;
                [448] calls_follow_policy;
                [449] a_denied_name_is_still_known;
                [450] an_activator_brings_its_own_policy;
                [463] policies_that_come_and_go_leave_nothing_behind;
                [464] an_activator_has_no_wildcard;
            }
            monitors {
                [333] nobody_hears_of_a_monitor;
                [334] unicasts_are_copied;
                [335] broadcasts_are_copied_without_a_match;
                [336] a_denied_message_is_not_copied;
                [337] a_message_that_did_not_fit_is_copied;
                [338] a_monitor_has_its_own_mask;
                [339] descriptors_stay_away_from_who_takes_none;
                [340] a_full_monitor_loses_alone;
                [341] a_monitor_is_found_by_id_only;
                [403] replies_and_notifications_are_copied;
            }
            metadata {
                [342] nothing_asked_is_nothing_told;
                [343] identity_is_that_of_hello;
                [344] capabilities_are_told_when_asked;
                [345] held_names_are_told_one_by_one;
                [346] a_name_leads_to_its_owner;
                [347] name_and_id_of_a_query_agree;
                [348] a_query_is_about_somebody;
                [349] who_gives_nothing_is_told_nothing_about;
                [350] messages_carry_what_receivers_ask;
                [351] who_asks_nothing_gets_no_metadata;
                [352] faked_identity_does_not_travel;
                [355] receivers_of_a_broadcast_see_one_message;
                [356] sequence_numbers_increase;
                [357] a_failed_import_leaves_a_gap;
                [358] groups_are_told_as_words;
                [359] a_list_of_nothing_is_empty;
                [360] connections_are_listed_once;
                [361] a_listed_name_stands_for_its_connection;
                [362] activators_are_listed_when_asked;
                [363] unknown_list_flags_are_refused;
                [451] metadata_comes_in_a_fixed_order;
                [452] each_receiver_gets_what_it_asks_for;
                [453] waiters_are_listed_when_asked;
                [454] a_query_that_does_not_fit_is_refused;
                [455] ids_are_never_used_twice;
                [465] a_faked_label_is_shown_and_does_not_travel;
                [466] faked_process_ids_are_shown;
                [467] a_label_travels_as_it_is;
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_expand {
    (@tests [$make:expr] $($chapter:ident { $([$($number:literal),*] $name:ident;)* })*) => {
        $(
            mod $chapter {
                #[allow(unused_imports, reason = "the world may be named by its path")]
                use super::*;

                $(
                    #[test]
                    fn $name() {
                        $crate::run(stringify!($chapter), stringify!($name), $make);
                    }
                )*
            }
        )*
    };
    (@infos [] $($chapter:ident { $([$($number:literal),*] $name:ident;)* })*) => {
        &[$($(
            CaseInfo {
                numbers: &[$($number),*],
                chapter: stringify!($chapter),
                name: stringify!($name),
            },
        )*)*]
    };
    (@find [$world:ty, $wanted:expr]
        $($chapter:ident { $([$($number:literal),*] $name:ident;)* })*) => {
        match $wanted {
            $($(
                (stringify!($chapter), stringify!($name)) => Some($crate::$chapter::$name::<$world>),
            )*)*
            _ => None,
        }
    };
}

/// Every case, in the order of the chapters.
#[must_use]
pub const fn cases() -> &'static [CaseInfo] {
    __conformance_list! { @infos [] }
}

fn find<W: World>(chapter: &str, name: &str) -> Option<fn(&mut Bench<W>) -> Outcome> {
    __conformance_list! { @find [W, (chapter, name)] }
}

/// Runs one case over a new world.
///
/// # Panics
///
/// If the case fails, or if there is none of that name.
pub fn run<W: World>(chapter: &str, name: &str, make: impl FnOnce(&CaseInfo) -> W) {
    let run = find::<W>(chapter, name);
    let info = cases().iter().find(|case| (case.chapter, case.name) == (chapter, name));
    let (Some(run), Some(info)) = (run, info) else { panic!("no case {chapter}::{name}") };
    let mut bench = Bench::new(make(info));
    if let Err(skip) = run(&mut bench) {
        report(&format!("{chapter}::{name}"), &skip.0);
    }
}

/// Prints a line for each case that commands alone cannot bring about.
pub fn report_not_expressed() {
    for (number, reason) in NOT_EXPRESSED {
        report(&format!("case {number}"), reason);
    }
}

/// One visible line: past the test harness, which shows what passing tests print to nobody.
fn report(what: &str, reason: &str) {
    let _ = writeln!(io::stderr(), "skipped: {what}: {reason}");
}

/// The table of all cases, as it stands in `docs/conformance.md`.
#[must_use]
pub fn table() -> String {
    let mut rows: Vec<(u16, String)> = Vec::new();
    for case in cases() {
        for number in case.numbers {
            let behaviour = case.name.replace('_', " ");
            rows.push((*number, format!("| {number} | {behaviour} | `{}` |\n", case.chapter)));
        }
    }
    for (number, reason) in NOT_EXPRESSED {
        rows.push((*number, format!("| {number} | not expressed: {reason} | |\n")));
    }
    rows.sort();
    let mut text = String::from(
        "# Conformance\n\n\
         What every transport shows. One suite, `core/conformance`, runs over each of them; a case that a\n\
         transport cannot express prints a line `skipped: ...` when the suite runs.\n\n\
         Cases from 400 on are ours, beyond what is known of the module.\n\n\
         | case | behaviour | chapter |\n|---|---|---|\n",
    );
    for (_, row) in rows {
        let _ = write!(text, "{row}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Highest number of a case that is known of the module.
    const LAST: u16 = 363;

    /// Numbers from here on are cases of our own.
    const OWN: u16 = 400;

    #[test]
    fn every_number_stands_in_one_place() {
        let mut seen = BTreeSet::new();
        let listed = cases().iter().flat_map(|case| case.numbers).chain(NOT_EXPRESSED.iter().map(|(n, _)| n));
        for number in listed {
            assert!(seen.insert(*number), "case {number} stands in two places");
            assert!(*number <= LAST || *number >= OWN, "there is no case {number}");
        }
        let missing: Vec<u16> = (1..=LAST).filter(|number| !seen.contains(number)).collect();
        assert_eq!(missing, []);
    }

    #[test]
    fn the_documented_table_is_the_list_of_cases() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance.md");
        if std::env::var_os("KDBUS_WRITE_DOCS").is_some() {
            std::fs::write(path, table()).unwrap();
        }
        let documented = std::fs::read_to_string(path).unwrap();
        assert!(
            documented == table(),
            "docs/conformance.md is out of date: run this test with KDBUS_WRITE_DOCS=1"
        );
    }
}

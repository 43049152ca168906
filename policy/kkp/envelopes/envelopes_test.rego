package kkp.envelopes_test

_decrypt := {
	"action": "decrypt",
	"caller": {
		"id": "orders",
		"kind": "service",
		"roles": ["service"],
		"method": "service_key",
		"attributes": {},
		"grants": [{
			"backend": "aws",
			"key_id": "alias/orders",
			"ops": ["encrypt", "decrypt"],
			"audiences": ["orders-db"],
			"policy_claims": {"environment": ["prod"]},
		}],
	},
	"claims": {
		"iss": "kkp",
		"sub": "orders",
		"aud": "orders-db",
		"backend": "aws",
		"key_id": "alias/orders",
		"ops": ["decrypt"],
		"policy_claims": {"environment": "prod"},
	},
	"request": {
		"backend": "aws",
		"key_id": "alias/orders",
		"context": {},
		"envelope": {"backend": "aws", "key_id": "alias/orders", "context": {}, "associated_data": null},
	},
}

_rewrap := json.patch(_decrypt, [
	{"op": "replace", "path": "/action", "value": "rewrap"},
	{"op": "replace", "path": "/claims/ops", "value": ["rewrap"]},
	{"op": "replace", "path": "/request/backend", "value": "gcp"},
	{"op": "replace", "path": "/request/key_id", "value": "archive"},
	{"op": "add", "path": "/caller/grants/-", "value": {
		"backend": "gcp",
		"key_id": "archive",
		"ops": ["encrypt"],
		"audiences": [],
		"policy_claims": {"environment": ["prod"]},
	}},
])

_moved_with(changes) := json.patch(_rewrap, [{"op": "add", "path": path, "value": value} |
	some path, value in changes
])

_move_permitted(changes) if data.kkp.envelopes.permit with input as _moved_with(changes)

_move_refused(changes, expected) if {
	not _move_permitted(changes)
	data.kkp.envelopes.denials == expected with input as _moved_with(changes)
}

_with(changes) := json.patch(_decrypt, [{"op": "add", "path": path, "value": value} |
	some path, value in changes
])

_permitted(changes) if data.kkp.envelopes.permit with input as _with(changes)

_denials(changes) := denials if denials := data.kkp.envelopes.denials with input as _with(changes)

_refused(changes, expected) if {
	not _permitted(changes)
	_denials(changes) == expected
}

test_a_covered_decryption_is_permitted if {
	_permitted({})
	_denials({}) == set()
}

test_an_encryption_needs_no_token if _permitted({"/action": "encrypt", "/claims": {}})

test_a_decryption_needs_a_token if _refused({"/claims": {}}, {"envelopes.token_required"})

test_a_missing_envelope_is_malformed if _refused({"/request/envelope": {}}, {"envelopes.malformed_input"})

test_labels_other_than_the_requests_are_malformed if {
	_refused({"/request/envelope/backend": "gcp"}, {"envelopes.malformed_input"})
	_refused({"/request/envelope/key_id": "alias/payroll"}, {"envelopes.malformed_input"})
}

test_a_token_out_of_scope_is_refused if {
	expected := {"envelopes.token_out_of_scope"}
	_refused({"/claims/backend": "gcp"}, expected)
	_refused({"/claims/key_id": "alias/payroll"}, expected)
	_refused({"/claims/ops": ["encrypt"]}, expected)
	_refused({"/claims/sub": "payroll"}, expected)
}

test_a_token_out_of_context_is_refused if {
	_refused({"/claims/context": {"table": "orders"}}, {"envelopes.token_out_of_context"})
}

test_a_token_in_context_is_permitted if {
	context := {"table": "orders"}
	_permitted({"/claims/context": context, "/request/envelope/context": context})
}

test_an_unbound_token_alone_is_refused if {
	_refused({"/caller/method": "kkp_token"}, {"envelopes.token_unbound"})
}

test_an_unbound_token_alone_is_permitted_where_any_is if {
	_permitted({"/caller/method": "kkp_token"}) with data.kkp.settings.bearer_tokens as "any"
}

test_a_token_for_kkp_itself_is_permitted_alone if {
	_permitted({"/caller/method": "kkp_token", "/claims/aud": "kkp"})
}

test_a_bound_token_is_permitted_alone if {
	_permitted({"/caller/method": "kkp_token", "/claims/cnf": {"jkt": "thumbprint"}})
}

test_without_a_grant_it_is_refused if _refused({"/caller/grants": []}, {"envelopes.no_grant"})

test_an_admin_needs_no_grant if _permitted({"/caller/grants": [], "/caller/roles": ["admin"]})

test_a_claim_outside_the_grant_is_refused if {
	_refused({"/claims/policy_claims": {"environment": "dev"}}, {"envelopes.policy_claims_exceed_grant"})
}

test_a_claim_left_out_does_not_widen_the_grant if {
	changes := {"/claims/policy_claims": {}, "/request/envelope/context": {"environment": "dev"}}
	_refused(changes, {"envelopes.policy_claims_exceed_grant"})
}

test_a_contradiction_is_refused if {
	expected := {"conditions.environment_mismatch"}
	_refused({"/request/context": {"environment": "dev"}}, expected)
	_refused({"/caller/attributes": {"environment": "dev"}}, expected)
	changes := {
		"/caller/grants/0/policy_claims": {"environment": ["dev", "prod"]},
		"/request/envelope/context": {"environment": "dev"},
	}
	_refused(changes, expected)
}

test_a_context_is_restricted_in_the_names_the_grant_has if {
	_permitted({"/action": "encrypt", "/claims": {}, "/request/envelope/context": {"table": "orders"}})
	changes := {"/action": "encrypt", "/claims": {}, "/request/envelope/context": {"environment": "prod"}}
	_permitted(changes)
	expected := {"envelopes.policy_claims_exceed_grant"}
	_refused(object.union(changes, {"/caller/grants/0/policy_claims": {"environment": []}}), expected)
}

test_a_message_key_is_generated_like_a_ciphertext if {
	_permitted({"/action": "generate_data_key", "/claims": {}})
	_permitted({"/action": "generate_data_key", "/claims/ops": ["encrypt"]})
	_refused({"/action": "generate_data_key"}, {"envelopes.token_out_of_scope"})
	changes := {"/action": "generate_data_key", "/claims": {}, "/caller/grants/0/ops": ["decrypt", "rewrap"]}
	_refused(changes, {"envelopes.no_grant"})
}

test_a_message_key_is_released_like_a_plaintext if {
	_permitted({"/action": "release_data_key"})
	_refused({"/action": "release_data_key", "/claims": {}}, {"envelopes.token_required"})
	_refused({"/action": "release_data_key", "/claims/ops": ["encrypt"]}, {"envelopes.token_out_of_scope"})
	changes := {"/action": "release_data_key", "/caller/grants/0/ops": ["encrypt", "rewrap"]}
	_refused(changes, {"envelopes.no_grant"})
}

test_an_envelope_is_moved_by_who_may_open_it_here_and_make_it_there if {
	_move_permitted({})
	data.kkp.envelopes.denials == set() with input as _rewrap
}

test_a_move_needs_a_token_for_the_key_that_it_starts_from if {
	_move_refused({"/claims": {}}, {"envelopes.token_required"})
	expected := {"envelopes.token_out_of_scope"}
	_move_refused({"/claims/ops": ["decrypt", "encrypt"]}, expected)
	_move_refused({"/claims/backend": "gcp", "/claims/key_id": "archive"}, expected)
	_move_refused({"/claims/key_id": "alias/payroll"}, expected)
}

test_a_move_needs_both_grants if {
	_move_refused({"/caller/grants/0/ops": ["encrypt", "rewrap"]}, {"envelopes.no_grant"})
	_move_refused({"/caller/grants/1/ops": ["decrypt", "rewrap"]}, {"envelopes.no_target_grant"})
	_move_refused({"/caller/grants": []}, {"envelopes.no_grant", "envelopes.no_target_grant"})
	_move_permitted({"/caller/grants": [], "/caller/roles": ["admin"]})
}

test_a_move_within_one_key_needs_both_grants_too if {
	same := {"/request/backend": "aws", "/request/key_id": "alias/orders"}
	_move_permitted(same)
	changes := object.union(same, {"/caller/grants/0/ops": ["decrypt", "rewrap"]})
	_move_refused(changes, {"envelopes.no_target_grant"})
}

test_a_move_stays_within_what_both_grants_allow if {
	expected := {"envelopes.policy_claims_exceed_target_grant"}
	_move_refused({"/caller/grants/1/policy_claims": {}}, expected)
	_move_refused({"/caller/grants/1/policy_claims": {"environment": ["dev"]}}, expected)
	_move_refused({"/caller/grants/0/policy_claims": {}}, {"envelopes.policy_claims_exceed_grant"})
	changes := {
		"/claims/policy_claims": {},
		"/request/envelope/context": {"environment": "prod"},
		"/caller/grants/1/policy_claims": {"environment": ["dev"]},
	}
	_move_refused(changes, expected)
}

test_a_move_to_or_from_nothing_is_malformed if {
	expected := {"envelopes.malformed_input"}
	_move_refused({"/request/key_id": null}, expected)
	_move_refused({"/request/backend": null}, expected)
	_move_refused({"/request/envelope/key_id": null}, expected)
	_move_refused({"/request/envelope/backend": null}, expected)
	_move_refused({"/request/envelope": {}}, expected)
}

test_an_empty_input_is_not_permitted if not data.kkp.envelopes.permit with input as {}

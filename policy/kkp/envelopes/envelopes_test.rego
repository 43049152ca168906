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

test_an_empty_input_is_not_permitted if not data.kkp.envelopes.permit with input as {}

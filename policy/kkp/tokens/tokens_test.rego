package kkp.tokens_test

_grant := {
	"backend": "aws",
	"key_id": "alias/orders",
	"ops": ["encrypt", "decrypt"],
	"audiences": ["orders-db"],
	"policy_claims": {"environment": ["prod"]},
}

_limited(max_ttl) := object.union(_grant, {"max_ttl": max_ttl})

_issue := {
	"action": "issue_token",
	"caller": {
		"id": "orders",
		"kind": "service",
		"roles": ["service"],
		"method": "service_key",
		"attributes": {},
		"grants": [_grant],
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
		"envelope": {},
		"subject": "orders",
		"ttl_seconds": null,
	},
}

_for_payroll := {"/claims/sub": "payroll", "/request/subject": "payroll", "/claims/act": {"sub": "orders"}}

_with(changes) := json.patch(_issue, [{"op": "add", "path": path, "value": value} |
	some path, value in changes
])

_permitted(changes) if data.kkp.tokens.permit with input as _with(changes)

_denials(changes) := denials if denials := data.kkp.tokens.denials with input as _with(changes)

_obligations(changes) := obligations if {
	obligations := data.kkp.tokens.permit.obligations with input as _with(changes)
}

_refused(changes, expected) if {
	not _permitted(changes)
	_denials(changes) == expected
}

test_a_covered_token_is_permitted if {
	_permitted({})
	_denials({}) == set()
	_obligations({}) == {}
}

test_an_identity_only_token_needs_a_grant if {
	_permitted({"/claims/ops": []})
	_refused({"/claims/ops": [], "/caller/grants": []}, {"tokens.no_grant"})
}

test_a_token_never_begets_a_token if {
	_refused({"/caller/method": "kkp_token"}, {"tokens.needs_own_credential"})
}

test_only_an_admin_names_another_subject if {
	_refused(_for_payroll, {"tokens.subject_not_caller"})
	_permitted(object.union(_for_payroll, {"/caller/roles": ["admin"]}))
}

test_a_delegation_is_told if {
	data.kkp.tokens.permit.reasons == ["tokens.granted"] with input as _issue
	changes := object.union(_for_payroll, {"/caller/roles": ["admin"]})
	data.kkp.tokens.permit.reasons == ["tokens.delegated", "tokens.granted"] with input as _with(changes)
}

test_the_actor_is_named_truly if {
	changes := object.union(_for_payroll, {"/caller/roles": ["admin"], "/claims/act": {"sub": "billing"}})
	_refused(changes, {"tokens.subject_not_caller"})
}

test_a_key_other_than_requested_is_malformed if {
	_refused({"/claims/key_id": "alias/payroll"}, {"tokens.malformed_input"})
}

test_a_lifetime_is_null_or_positive if {
	_permitted({"/request/ttl_seconds": 1})
	_refused({"/request/ttl_seconds": 0}, {"tokens.malformed_input"})
	_refused({"/request/ttl_seconds": "60"}, {"tokens.malformed_input"})
}

test_audience_and_operations_come_from_one_grant if {
	grants := [object.union(_grant, {"audiences": []}), object.union(_grant, {"ops": ["encrypt"]})]
	_refused({"/caller/grants": grants}, {"tokens.no_grant"})
}

test_an_admin_needs_no_grant if _permitted({"/caller/grants": [], "/caller/roles": ["admin"]})

test_a_claim_outside_the_grant_is_refused if {
	expected := {"tokens.policy_claims_exceed_grant"}
	_refused({"/claims/policy_claims": {"environment": "dev"}}, expected)
	_refused({"/claims/policy_claims": {"environment": "prod", "team": "blue"}}, expected)
}

test_the_longest_limit_obliges if {
	_obligations({"/caller/grants": [_limited(60), _limited(120)]}) == {"max_ttl": 120}
}

test_a_grant_without_a_limit_lifts_the_others if {
	_obligations({"/caller/grants": [_limited(60), _grant]}) == {}
}

test_an_admin_is_not_limited if {
	_obligations({"/caller/grants": [_limited(60)], "/caller/roles": ["admin"]}) == {}
}

test_an_explicit_lifetime_stays_within_the_limit if {
	_permitted({"/caller/grants": [_limited(60)], "/request/ttl_seconds": 60})
	_refused(
		{"/caller/grants": [_limited(60)], "/request/ttl_seconds": 61},
		{"tokens.ttl_exceeds_grant"},
	)
}

test_a_limit_that_is_no_number_covers_nothing if {
	_refused({"/caller/grants": [_limited("60")]}, {"tokens.policy_claims_exceed_grant"})
}

test_a_contradiction_is_refused if {
	expected := {"conditions.environment_mismatch"}
	_refused({"/request/context": {"environment": "dev"}}, expected)
	_refused({"/caller/attributes": {"environment": "dev"}}, expected)
	_refused({"/request/envelope": {"context": {"environment": "dev"}}}, expected)
}

test_an_empty_input_is_not_permitted if not data.kkp.tokens.permit with input as {}

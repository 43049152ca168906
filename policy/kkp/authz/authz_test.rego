package kkp.authz_test

_decrypt := {
	"action": "decrypt",
	"caller": {
		"id": "orders",
		"kind": "service",
		"roles": ["service"],
		"issuer": "kkp",
		"method": "service_key",
		"attributes": {},
		"grants": [{
			"backend": "aws",
			"key_id": "alias/orders",
			"ops": ["decrypt"],
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
		"context": {"environment": "prod"},
		"envelope": {"backend": "aws", "key_id": "alias/orders", "context": {}, "associated_data": null},
	},
	"environment": {"time": "2026-01-01T00:00:00Z", "client_ip": "10.0.0.7"},
}

_with(changes) := json.patch(_decrypt, [{"op": "add", "path": path, "value": value} |
	some path, value in changes
])

_denied(reasons, public) := {"allow": false, "reasons": reasons, "public": public, "obligations": {}}

test_a_covered_request_is_allowed if {
	data.kkp.authz.decision == {
		"allow": true,
		"reasons": ["envelopes.granted"],
		"public": [],
		"obligations": {},
	} with input as _decrypt
}

test_an_empty_input_is_denied if {
	data.kkp.authz.decision == _denied(["authz.malformed_input"], []) with input as {}
}

test_an_input_that_is_no_object_is_denied if {
	data.kkp.authz.decision == _denied(["authz.malformed_input"], []) with input as "decrypt"
}

test_an_unknown_action_is_denied if {
	expected := _denied(["authz.unknown_action"], [])
	data.kkp.authz.decision == expected with input as _with({"/action": "destroy_everything"})
}

test_an_unknown_caller_is_denied if {
	expected := _denied(["authz.unknown_caller"], [])
	data.kkp.authz.decision == expected with input as _with({"/caller/kind": "alien"})
}

test_a_role_without_the_action_is_denied if {
	expected := _denied(["authz.role_lacks_action"], ["authz.role_lacks_action"])
	data.kkp.authz.decision == expected with input as _with({"/caller/roles": ["auditor"]})
}

test_a_known_action_without_a_package_is_denied if {
	expected := _denied(["authz.action_not_served"], ["authz.action_not_served"])
	changes := {"/action": "create_key", "/caller/roles": ["admin"]}
	data.kkp.authz.decision == expected with input as _with(changes)
}

test_an_operations_denial_is_told if {
	expected := _denied(["envelopes.no_grant"], ["envelopes.no_grant"])
	data.kkp.authz.decision == expected with input as _with({"/caller/grants": []})
}

test_an_administrator_is_allowed if {
	changes := {"/action": "manage_identity", "/caller/roles": ["admin"], "/claims": {}}
	data.kkp.authz.decision.reasons == ["administration.granted"] with input as _with(changes)
}

test_a_tokens_obligation_is_passed_on if {
	grant := object.union(_decrypt.caller.grants[0], {"max_ttl": 60})
	changes := {
		"/action": "issue_token",
		"/caller/grants": [grant],
		"/request/subject": null,
		"/request/ttl_seconds": null,
	}
	data.kkp.authz.decision == {
		"allow": true,
		"reasons": ["tokens.granted"],
		"public": [],
		"obligations": {"max_ttl": 60},
	} with input as _with(changes)
}

test_every_role_has_known_members if {
	every role in data.kkp.roles {
		object.keys(role) == {"actions", "acts_for_others", "needs_grant"}
	}
}

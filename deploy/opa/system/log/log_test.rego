package system.log_test

_input := {
	"action": "decrypt",
	"caller": {
		"id": "orders",
		"kind": "service",
		"roles": ["service"],
		"issuer": "kkp",
		"method": "service_key",
		"attributes": {"team": "private"},
		"grants": [{"backend": "aws", "policy_claims": {"environment": ["private"]}}],
	},
	"claims": {"sub": "private", "policy_claims": {"environment": "private"}},
	"request": {
		"backend": "aws",
		"key_id": "alias/orders",
		"context": {"order": "private"},
		"envelope": {"backend": "aws", "context": {"order": "private"}, "associated_data": "private"},
		"identity": {"id": "private"},
		"subject": "private",
	},
	"environment": {"time": "2026-01-01T00:00:00Z", "client_ip": "10.0.0.7"},
	"something new": "private",
}

test_what_an_operator_needs_stays_and_nothing_else if {
	data.system.log.mask == [{"op": "upsert", "path": "/input", "value": {
		"action": "decrypt",
		"caller": {
			"id": "orders",
			"kind": "service",
			"roles": ["service"],
			"issuer": "kkp",
			"method": "service_key",
		},
		"request": {"backend": "aws", "key_id": "alias/orders"},
		"environment": {"time": "2026-01-01T00:00:00Z", "client_ip": "10.0.0.7"},
	}}] with input as {"input": _input}
}

test_an_empty_input_stays_empty if {
	data.system.log.mask == [{"op": "upsert", "path": "/input", "value": {}}] with input as {"input": {}}
}

test_an_event_without_input_is_told_to_drop_it if {
	data.system.log.mask == ["/input"] with input as {"path": "kkp/authz/decision"}
}

test_an_input_of_another_shape_is_dropped if {
	every other in ["private", ["private"], 1, null, true] {
		data.system.log.mask == ["/input"] with input as {"input": other}
	}
}

test_members_of_another_shape_are_dropped if {
	data.system.log.mask == [{"op": "upsert", "path": "/input", "value": {}}] with input.input as {
		"action": ["private"],
		"caller": "private",
		"request": ["private"],
	}
}

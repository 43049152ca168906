package kkp.approvals_test

_input := {
	"action": "decrypt",
	"caller": {"id": "orders", "roles": ["service"]},
	"request": {
		"backend": "aws",
		"key_id": "alias/orders",
		"envelope": {"backend": "aws", "key_id": "alias/orders"},
	},
}

_moved := {
	"action": "rewrap",
	"caller": {"id": "orders", "roles": ["service"]},
	"request": {
		"backend": "gcp",
		"key_id": "orders",
		"envelope": {"backend": "aws", "key_id": "alias/orders"},
	},
}

_none := {}

_needed := {"require_approval": {"valid_minutes": 5}}

_obligations(rule) := obligations if {
	rules := [object.union({"valid_minutes": 5}, rule)]
	obligations := data.kkp.approvals.obligations({}, rules) with input as _input
}

_when_moved(rule) := obligations if {
	rules := [object.union({"valid_minutes": 5}, rule)]
	obligations := data.kkp.approvals.obligations({}, rules) with input as _moved
}

test_nothing_needs_approval_by_default if {
	rules := data.kkp.settings.approvals
	data.kkp.approvals.obligations(_none, rules) == _none with input as _input
	data.kkp.approvals.obligations({"max_ttl": 60}, rules) == {"max_ttl": 60} with input as _input
}

test_the_other_obligations_stay if {
	expected := {"max_ttl": 60, "require_approval": {"valid_minutes": 5}}
	data.kkp.approvals.obligations({"max_ttl": 60}, [{"valid_minutes": 5}]) == expected with input as _input
}

test_a_rule_without_conditions_is_about_everything if _obligations({}) == _needed

test_a_rule_is_about_the_actions_it_names if {
	_obligations({"actions": ["encrypt", "decrypt"]}) == _needed
	_obligations({"actions": ["encrypt"]}) == _none
	_obligations({"actions": []}) == _none
}

test_a_rule_is_about_the_callers_it_names if {
	_obligations({"callers": ["orders"]}) == _needed
	_obligations({"callers": ["orders-2"]}) == _none
}

test_a_rule_is_about_the_roles_it_names if {
	_obligations({"roles": ["admin", "service"]}) == _needed
	_obligations({"roles": ["admin"]}) == _none
}

test_a_rule_is_about_the_keys_it_names if {
	_obligations({"backend": "aws"}) == _needed
	_obligations({"backend": "gcp"}) == _none
	_obligations({"key_id": "alias/orders"}) == _needed
	_obligations({"key_id": "alias/*"}) == _needed
	_obligations({"key_id": "alias/order"}) == _none
	_obligations({"backend": "aws", "key_id": "alias/o*"}) == _needed
	_obligations({"backend": "gcp", "key_id": "alias/o*"}) == _none
	_obligations({"backend": "aws", "key_id": "alias/x*"}) == _none
}

test_all_that_a_rule_names_must_be_met if {
	_obligations({"actions": ["decrypt"], "backend": "gcp"}) == _none
	_obligations({"actions": ["encrypt"], "backend": "aws"}) == _none
	_obligations({"actions": ["decrypt"], "backend": "aws"}) == _needed
}

test_what_moves_is_touched_at_both_ends if {
	_when_moved({"backend": "aws", "key_id": "alias/orders"}) == _needed
	_when_moved({"backend": "gcp", "key_id": "orders"}) == _needed
	_when_moved({"backend": "gcp", "key_id": "alias/orders"}) == _none
	_when_moved({"backend": "azure"}) == _none
}

test_a_rule_about_keys_is_not_about_what_has_none if {
	rules := [{"valid_minutes": 5, "backend": "aws"}]
	asked := {
		"action": "rotate_signing_key",
		"caller": {"id": "root", "roles": ["admin"]},
		"request": {"backend": null, "key_id": null, "envelope": {}},
	}
	data.kkp.approvals.obligations({}, rules) == _none with input as asked
}

test_the_first_rule_that_applies_holds if {
	rules := [
		{"actions": ["encrypt"], "valid_minutes": 1},
		{"valid_minutes": 2, "wait_minutes": 3, "break_glass": true, "note": "for emergencies"},
		{"valid_minutes": 4},
	]
	expected := {"require_approval": {"valid_minutes": 2, "wait_minutes": 3, "break_glass": true}}
	data.kkp.approvals.obligations({}, rules) == expected with input as _input
}

test_a_slip_of_the_pen_asks_for_too_many_approvals if {
	_obligations({"actions": "encrypt"}) == _needed
	_obligations({"action": ["encrypt"]}) == _needed
	_obligations({"callers": "nobody"}) == _needed
	_obligations({"roles": "admin"}) == _needed
	_obligations({"backend": 1}) == _needed
	_obligations({"backend": "gcp", "key_id": 1}) == _needed
	_obligations({"key_id": null, "backend": "gcp"}) == _needed
}

test_approving_needs_no_approval if {
	asked := object.union(_input, {"action": "approve"})
	rules := [{"valid_minutes": 5}]
	data.kkp.approvals.obligations({}, rules) == _none with input as asked
}

test_whoever_is_at_the_door_needs_no_approval if {
	rules := [{"valid_minutes": 5}]
	every action in ["sign_up", "log_in", "log_out"] {
		asked := object.union(_input, {"action": action})
		data.kkp.approvals.obligations({}, rules) == _none with input as asked
	}
}

test_what_is_no_list_permits_nothing if {
	not data.kkp.approvals.obligations({}, {}) with input as _input
	not data.kkp.approvals.obligations({}, "all") with input as _input
	not data.kkp.approvals.obligations({}, null) with input as _input
}

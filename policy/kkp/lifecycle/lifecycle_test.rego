package kkp.lifecycle_test

_input(id, role, claims) := {
	"action": "introspect_token",
	"caller": {"id": id, "roles": [role], "method": "service_key"},
	"claims": claims,
	"request": {"envelope": {}},
}

_token := {"sub": "orders", "aud": "orders-db"}

_delegated := {"sub": "orders", "aud": "orders-db", "act": {"sub": "broker"}}

_grounds(id, role, claims) := grounds if {
	grounds := data.kkp.lifecycle.permit.reasons with input as _input(id, role, claims)
}

test_a_token_concerns_its_subject if _grounds("orders", "service", _token) == ["lifecycle.concerned"]

test_a_token_concerns_its_audience if _grounds("orders-db", "service", _token) == ["lifecycle.concerned"]

test_a_token_concerns_who_asked_for_it if {
	_grounds("broker", "service", _delegated) == ["lifecycle.concerned"]
}

test_a_token_does_not_concern_others if {
	_grounds("broker", "service", _token) == ["lifecycle.unconcerned"]
	_grounds("orders-d", "service", _token) == ["lifecycle.unconcerned"]
}

test_a_token_that_is_not_good_concerns_nobody if {
	_grounds("orders", "service", {}) == ["lifecycle.unconcerned"]
}

test_every_token_is_an_admins_business if {
	_grounds("root", "admin", _token) == ["lifecycle.any"]
	_grounds("root", "admin", {}) == ["lifecycle.any"]
}

test_another_role_lends_no_business if {
	_grounds("broker", "auditor", _token) == ["lifecycle.unconcerned"]
}

test_asking_takes_a_credential_of_ones_own if {
	asked := _input("orders", "service", _token)
	data.kkp.lifecycle.permit with input as asked
	count(data.kkp.lifecycle.denials) == 0 with input as asked
	alone := json.patch(asked, [{"op": "replace", "path": "/caller/method", "value": "kkp_token"}])
	not data.kkp.lifecycle.permit with input as alone
	data.kkp.lifecycle.denials == {"lifecycle.needs_own_credential"} with input as alone
}

test_an_empty_input_is_not_permitted if {
	not data.kkp.lifecycle.permit with input as {}
}

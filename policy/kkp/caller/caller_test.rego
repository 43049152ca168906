package kkp.caller_test

_input(action, roles) := {"action": action, "caller": {"roles": roles}}

test_one_role_that_permits_is_enough if {
	data.kkp.caller.permitted with input as _input("encrypt", ["auditor", "service"])
}

test_an_unknown_role_permits_nothing if {
	not data.kkp.caller.permitted with input as _input("encrypt", ["emperor"])
}

test_no_roles_permit_nothing if {
	not data.kkp.caller.permitted with input as _input("encrypt", [])
	not data.kkp.caller.permitted with input as {}
}

test_an_admin_needs_no_grant if {
	data.kkp.caller.exempt with input as _input("encrypt", ["admin"])
}

test_a_service_needs_a_grant if {
	not data.kkp.caller.exempt with input as _input("encrypt", ["service"])
}

test_an_exemption_reaches_only_the_roles_own_actions if {
	not data.kkp.caller.exempt with input as _input("encrypt", ["auditor", "service"])
}

test_only_an_admin_acts_for_others if {
	data.kkp.caller.acts_for_others with input as _input("issue_token", ["admin"])
	not data.kkp.caller.acts_for_others with input as _input("issue_token", ["service"])
}

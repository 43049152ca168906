package kkp.administration_test

_input(role, method) := {
	"action": "read_audit",
	"caller": {"roles": [role], "method": method},
	"claims": {},
	"request": {"envelope": {}},
}

test_an_auditor_reads_the_audit if {
	data.kkp.administration.permit with input as _input("auditor", "service_key")
	count(data.kkp.administration.denials) == 0 with input as _input("auditor", "service_key")
}

test_a_service_does_not_read_the_audit if {
	not data.kkp.administration.permit with input as _input("service", "service_key")
}

test_a_token_alone_reads_no_audit if {
	not data.kkp.administration.permit with input as _input("auditor", "kkp_token")
}

test_a_token_alone_is_told_why if {
	expected := {"administration.needs_own_credential"}
	data.kkp.administration.denials == expected with input as _input("auditor", "kkp_token")
}

test_an_empty_input_is_not_permitted if {
	not data.kkp.administration.permit with input as {}
}

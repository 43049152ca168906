package kkp.conditions_test

_input(attributes, request_context, envelope) := {
	"caller": {"attributes": attributes},
	"claims": {"policy_claims": {"environment": "prod", "region": "eu"}},
	"request": {"context": request_context, "envelope": envelope},
}

_prod := {"environment": "prod", "region": "eu", "other": "thing"}

_denials(attributes, request_context, envelope) := denials if {
	denials := data.kkp.conditions.denials with input as _input(attributes, request_context, envelope)
}

test_equal_values_everywhere_agree if {
	_denials(_prod, _prod, {"context": _prod}) == set()
}

test_silence_everywhere_agrees if {
	_denials({}, {}, {}) == set()
}

test_no_claims_agree_with_anything if {
	inputs := {"caller": {"attributes": _prod}, "claims": {}, "request": {"context": _prod, "envelope": {}}}
	data.kkp.conditions.denials == set() with input as inputs
}

test_another_environment_is_told_wherever_it_stands if {
	expected := {"conditions.environment_mismatch"}
	_denials({"environment": "dev"}, {}, {}) == expected
	_denials({}, {"environment": "dev"}, {}) == expected
	_denials({}, {}, {"context": {"environment": "dev"}}) == expected
}

test_another_claim_is_told if {
	_denials({"region": "us"}, {}, {}) == {"conditions.policy_claim_mismatch"}
}

test_missing_attributes_are_told if {
	inputs := {"claims": {"policy_claims": {"environment": "prod"}}, "request": {"context": {}, "envelope": {}}}
	data.kkp.conditions.denials == {"conditions.environment_mismatch"} with input as inputs
}

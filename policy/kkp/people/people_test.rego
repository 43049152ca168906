package kkp.people_test

_anonymous := {"kind": "anonymous", "method": "none"}

_person := {"kind": "user", "method": "session"}

_asked(action, caller) := {
	"action": action,
	"caller": caller,
	"claims": {},
	"request": {"envelope": {}},
}

test_whoever_is_nobody_may_sign_up_and_log_in if {
	expected := {"reasons": ["people.door_open"], "obligations": {}}
	every action in ["log_in", "sign_up"] {
		data.kkp.people.permit == expected with input as _asked(action, _anonymous)
		count(data.kkp.people.denials) == 0 with input as _asked(action, _anonymous)
	}
}

test_whoever_is_somebody_may_not if {
	every caller in [_person, {"kind": "service", "method": "service_key"}, {"kind": "anonymous", "method": "session"}] {
		not data.kkp.people.permit with input as _asked("log_in", caller)
		data.kkp.people.denials == {"people.not_anonymous"} with input as _asked("log_in", caller)
	}
}

test_a_person_may_log_out_and_change_their_password if {
	expected := {"reasons": ["people.own_account"], "obligations": {}}
	every action in ["log_out", "change_password"] {
		data.kkp.people.permit == expected with input as _asked(action, _person)
		count(data.kkp.people.denials) == 0 with input as _asked(action, _person)
	}
}

test_nothing_else_speaks_for_a_person if {
	every caller in [_anonymous, {"kind": "user", "method": "kkp_token"}, {"kind": "service", "method": "session"}] {
		not data.kkp.people.permit with input as _asked("change_password", caller)
		data.kkp.people.denials == {"people.needs_session"} with input as _asked("change_password", caller)
	}
}

test_an_empty_input_is_not_permitted if {
	not data.kkp.people.permit with input as {}
	data.kkp.people.denials == {"people.needs_session"} with input as {}
}

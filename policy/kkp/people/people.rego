# METADATA
# title: People at the door, and their own accounts
# description: |
#   Signing up and logging in are for the caller `anonymous`, who has no other rights; whether code or password
#   is right is KKP's to tell, and policy is told neither. Logging out and changing one's password take a
#   session: no key, and no token, speaks for the person there.
package kkp.people

# METADATA
# title: The actions of people
actions := {"change_password", "log_in", "log_out", "sign_up"}

# METADATA
# title: The action is permitted
# description: If all of this holds, on these grounds.
permit := {"reasons": _grounds, "obligations": {}} if {
	is_object(input.claims)
	is_object(input.request.envelope)
}

_grounds := ["people.door_open"] if {
	_at_the_door
	_is_anonymous
} else := ["people.own_account"] if {
	_on_own_account
	_has_session
}

# METADATA
# title: Why an action of people is refused
# scope: document
denials contains "people.not_anonymous" if {
	_at_the_door
	not _is_anonymous
}

denials contains "people.needs_session" if {
	not _at_the_door
	not _person_with_session
}

_at_the_door if input.action in {"log_in", "sign_up"}

_on_own_account if input.action in {"change_password", "log_out"}

_is_anonymous if {
	input.caller.kind == "anonymous"
	input.caller.method == "none"
}

_has_session if {
	input.caller.kind == "user"
	input.caller.method == "session"
}

_person_with_session if {
	_on_own_account
	_has_session
}

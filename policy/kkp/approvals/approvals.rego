# METADATA
# title: What somebody else must approve
# description: |
#   `data.kkp.settings.approvals` is a list of rules: each names what it is about, and how an approval is asked
#   for. The first that applies holds. A rule applies unless all of what it names is well-formed and something
#   of it spares the request: one with a slip of the pen asks for too many approvals, never for too few.
package kkp.approvals

# METADATA
# title: The obligations of what is permitted, and the one that this makes
# description: Undefined, so that nothing is permitted, where the rules are no list of objects.
obligations(permitted, rules) := permitted if {
	rules == []
} else := permitted if {
	# Nobody could ever be the last to approve, and who has yet to log in could not be given what is approved.
	input.action in {"approve", "sign_up", "log_in", "log_out"}
	is_array(rules)
} else := object.union(permitted, {"require_approval": demand}) if {
	is_array(rules)
	demand := _demands(rules)[0]
} else := permitted if {
	is_array(rules)
	count(_demands(rules)) == 0
}

_demands(rules) := [demand |
	some rule in rules
	not _spares(rule)
	demand := object.filter(rule, ["break_glass", "valid_minutes", "wait_minutes"])
]

_spares(rule) if {
	actions := rule.actions
	is_array(actions)
	not input.action in actions
} else if {
	callers := rule.callers
	is_array(callers)
	not input.caller.id in callers
} else if {
	is_array(rule.roles)
	count([role | some role in input.caller.roles; role in rule.roles]) == 0
} else if {
	_names_keys(rule)
	not _touches(rule, input.request)
	not _touches(rule, input.request.envelope)
}

_names_keys(rule) if {
	is_string(rule.backend)
	is_string(object.get(rule, "key_id", ""))
} else if {
	is_string(rule.key_id)
	is_string(object.get(rule, "backend", ""))
}

# What moves is touched under the key that it leaves, and under the one that it comes to.
_touches(rule, key) if {
	is_string(key.backend)
	is_string(key.key_id)
	object.get(rule, "backend", key.backend) == key.backend
	pattern := object.get(rule, "key_id", "*")
	data.kkp.grants.names_key({"backend": key.backend, "key_id": pattern}, key)
}

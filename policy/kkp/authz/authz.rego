# METADATA
# title: May they?
# description: |
#   The one entrypoint. A role must permit the action, and the operation's own package must permit the
#   request. Every condition is a positive rule and all must hold, so one that is undefined, for whatever
#   cause, denies. The packages' denials are the negations of those same rules, and only explain.
package kkp.authz

# METADATA
# title: The decision
# description: Allow, the reason codes, those that the caller may see, and what KKP must do besides.
# entrypoint: true
default decision := {
	"allow": false,
	"reasons": ["authz.malformed_input"],
	"public": [],
	"obligations": {},
}

decision := {
	"allow": true,
	"reasons": _grounds,
	"public": [],
	"obligations": data.kkp.tokens.obligations,
} if {
	_well_formed
	_known_caller
	data.kkp.caller.permitted
	_grounds
}

else := {
	"allow": false,
	"reasons": _refusals,
	"public": [code | some code in _refusals; data.kkp.reasons[code].public],
	"obligations": {},
} if {
	_well_formed
}

# Types are checked before any rule looks inside: engines differ on iterating what is not a collection.
_well_formed if {
	is_string(input.caller.id)
	is_array(input.caller.roles)
	is_array(input.caller.grants)
	is_object(input.caller.attributes)
	is_object(input.claims)
	is_object(input.request.context)
	is_object(input.request.envelope)
}

_known_caller if {
	input.caller.kind in {"operator", "service", "user"}
	input.caller.method in {"kkp_token", "local_operator", "service_key"}
}

_known_action if {
	some role in data.kkp.roles
	input.action in role.actions
}

_operation := "envelopes" if {
	input.action in {"decrypt", "encrypt"}
} else := "tokens" if {
	input.action == "issue_token"
} else := "administration" if {
	input.action in {"explain_policy", "manage_identity", "read_audit", "revoke_signing_key", "rotate_signing_key"}
} else := "lifecycle" if {
	input.action in {"introspect_token", "revoke_token"}
}

_grounds := ["envelopes.granted"] if {
	_operation == "envelopes"
	data.kkp.envelopes.permitted
} else := data.kkp.tokens.grounds if {
	_operation == "tokens"
	data.kkp.tokens.permitted
} else := ["administration.granted"] if {
	_operation == "administration"
	data.kkp.administration.permitted
} else := data.kkp.lifecycle.grounds if {
	_operation == "lifecycle"
	data.kkp.lifecycle.permitted
}

# The first kind that applies, so that a stranger learns no more than that he is one.
default _refusals := ["authz.action_not_served"]

_refusals := ["authz.unknown_action"] if {
	not _known_action
} else := ["authz.unknown_caller"] if {
	not _known_caller
} else := ["authz.role_lacks_action"] if {
	not data.kkp.caller.permitted
} else := _denials if {
	count(_denials) > 0
}

_denials := [code | some code in data.kkp.envelopes.denials] if {
	_operation == "envelopes"
} else := [code | some code in data.kkp.tokens.denials] if {
	_operation == "tokens"
} else := [code | some code in data.kkp.administration.denials] if {
	_operation == "administration"
} else := [code | some code in data.kkp.lifecycle.denials] if {
	_operation == "lifecycle"
}

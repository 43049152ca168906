# METADATA
# title: May they?
# description: |
#   The one entrypoint. Everything that allows stands here and in the `permit` of the operation's own package:
#   each condition is a positive one and all must hold, so one that is undefined, for whatever cause, denies.
#   What explains a refusal (`refusals.rego` here, `denials.rego` beside each `permit`) decides nothing.
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
	"reasons": permit.reasons,
	"public": [],
	"obligations": data.kkp.approvals.obligations(permit.obligations, data.kkp.settings.approvals),
} if {
	# Types first, before any line looks inside: engines differ on iterating what is not a collection.
	is_string(input.caller.id)
	is_array(input.caller.roles)
	is_array(input.caller.grants)
	is_object(input.caller.attributes)
	is_object(input.request.context)

	# The caller is of a kind, and was proven in a way, that the policy knows.
	input.caller.kind in {"anonymous", "operator", "service", "user"}
	input.caller.method in {"jwt", "kkp_token", "local_operator", "mtls", "none", "service_key", "session"}

	# The operation's package permits the request.
	permit := _permit(input.action)

	# Some role of the caller has the action.
	some role in input.caller.roles
	input.action in data.kkp.roles[role].actions
}

else := {
	"allow": false,
	"reasons": _refusals,
	"public": [code | some code in _refusals; data.kkp.reasons[code].public],
	"obligations": {},
} if {
	_well_formed
}

_permit(action) := permit if {
	action in {"decrypt", "encrypt", "generate_data_key", "release_data_key", "rewrap"}
	permit := data.kkp.envelopes.permit
} else := permit if {
	action == "issue_token"
	permit := data.kkp.tokens.permit
} else := permit if {
	action in data.kkp.administration.actions
	permit := data.kkp.administration.permit
} else := permit if {
	action in {"introspect_token", "revoke_token"}
	permit := data.kkp.lifecycle.permit
} else := permit if {
	action in data.kkp.people.actions
	permit := data.kkp.people.permit
}

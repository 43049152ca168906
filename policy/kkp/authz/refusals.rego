package kkp.authz

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
	input.action in {"decrypt", "encrypt", "generate_data_key", "release_data_key", "rewrap"}
} else := [code | some code in data.kkp.tokens.denials] if {
	input.action == "issue_token"
} else := [code | some code in data.kkp.administration.denials] if {
	input.action in data.kkp.administration.actions
} else := [code | some code in data.kkp.lifecycle.denials] if {
	input.action in {"introspect_token", "revoke_token"}
} else := [code | some code in data.kkp.people.denials] if {
	input.action in data.kkp.people.actions
}

# What the decision demands, one rule for each kind of refusal.
_well_formed if {
	is_string(input.caller.id)
	is_array(input.caller.roles)
	is_array(input.caller.grants)
	is_object(input.caller.attributes)
	is_object(input.claims)
	is_object(input.request.context)
	is_object(input.request.envelope)
}

_known_action if {
	some role in data.kkp.roles
	input.action in role.actions
}

_known_caller if {
	input.caller.kind in {"anonymous", "operator", "service", "user"}
	input.caller.method in {"jwt", "kkp_token", "local_operator", "mtls", "none", "service_key", "session"}
}

package kkp.envelopes

# METADATA
# title: Why an operation on an envelope is refused
# scope: document
denials contains "envelopes.malformed_input" if not _well_formed

denials contains "envelopes.token_required" if {
	_well_formed
	not _token_suffices
}

denials contains "envelopes.token_out_of_scope" if {
	_well_formed
	not _token_in_scope
}

denials contains "envelopes.token_out_of_context" if {
	_well_formed
	not _token_in_context
}

denials contains "envelopes.token_unbound" if {
	_well_formed
	not _bound(input.claims)
}

denials contains "envelopes.no_grant" if {
	_well_formed
	not _key_granted
}

denials contains "envelopes.no_target_grant" if {
	_well_formed
	not _target_granted
}

denials contains "envelopes.policy_claims_exceed_grant" if {
	_well_formed
	_key_granted
	policy_claims := object.get(input.claims, "policy_claims", {})
	envelope := input.request.envelope
	not _covered(envelope, _grant_op, policy_claims)
}

denials contains "envelopes.policy_claims_exceed_target_grant" if {
	_well_formed
	_target_granted
	input.action == "rewrap"
	policy_claims := object.get(input.claims, "policy_claims", {})
	request := input.request
	not _covered(request, "encrypt", policy_claims)
}

denials contains code if {
	_well_formed
	some code in data.kkp.conditions.denials
}

_well_formed if {
	is_string(input.request.backend)
	is_string(input.request.key_id)
	is_string(input.request.envelope.backend)
	is_string(input.request.envelope.key_id)
	is_object(input.request.envelope.context)
	_labels_fit
	_claims_well_formed
}

_labels_fit if {
	input.action == "rewrap"
} else if {
	input.request.envelope.backend == input.request.backend
	input.request.envelope.key_id == input.request.key_id
}

_claims_well_formed if {
	is_array(input.claims.ops)
	is_object(input.claims.policy_claims)
	is_object(object.get(input.claims, "context", {}))
} else if {
	count(input.claims) == 0
}

# An envelope is moved by whoever could open it, with a token that says so.
default _token_op := "rewrap"

_token_op := _op(input.action)

default _grant_op := "decrypt"

_grant_op := _op(input.action)

_token_suffices if {
	count(input.claims) > 0
} else if {
	_op(input.action) == "encrypt"
	input.caller.method != "kkp_token"
}

_token_in_scope if {
	input.claims.backend == input.request.envelope.backend
	input.claims.key_id == input.request.envelope.key_id
	_token_op in input.claims.ops
	input.caller.id in [input.claims.sub, object.get(input.claims, ["act", "sub"], null)]
} else if {
	count(input.claims) == 0
}

_token_in_context if {
	every name, value in object.get(input.claims, "context", {}) {
		input.request.envelope.context[name] == value
	}
}

_key_granted if {
	some grant in input.caller.grants
	data.kkp.grants.names_key(grant, input.request.envelope)
	_grant_op in grant.ops
} else if {
	data.kkp.caller.exempt
}

_target_granted if {
	input.action != "rewrap"
} else if {
	some grant in input.caller.grants
	data.kkp.grants.names_key(grant, input.request)
	"encrypt" in grant.ops
} else if {
	data.kkp.caller.exempt
}

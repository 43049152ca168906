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

denials contains "envelopes.policy_claims_exceed_grant" if {
	_well_formed
	_key_granted
	not _covered(object.get(input.claims, "policy_claims", {}))
}

denials contains code if {
	_well_formed
	some code in data.kkp.conditions.denials
}

_well_formed if {
	is_string(input.request.backend)
	is_string(input.request.key_id)
	is_object(input.request.envelope.context)
	input.request.envelope.backend == input.request.backend
	input.request.envelope.key_id == input.request.key_id
	_claims_well_formed
}

_claims_well_formed if {
	is_array(input.claims.ops)
	is_object(input.claims.policy_claims)
	is_object(object.get(input.claims, "context", {}))
} else if {
	count(input.claims) == 0
}

_token_suffices if {
	count(input.claims) > 0
} else if {
	input.action == "encrypt"
	input.caller.method != "kkp_token"
}

_token_in_scope if {
	input.claims.backend == input.request.backend
	input.claims.key_id == input.request.key_id
	input.action in input.claims.ops
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
	data.kkp.grants.names_key(grant, input.request)
	input.action in grant.ops
} else if {
	data.kkp.caller.exempt
}

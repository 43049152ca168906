package kkp.tokens

# METADATA
# title: Why a token is refused
# scope: document
denials contains "tokens.malformed_input" if not _well_formed

denials contains "tokens.needs_own_credential" if not _own_credential

denials contains "tokens.subject_not_caller" if {
	_well_formed
	not _grounds(input.claims, input.caller)
}

denials contains "tokens.no_grant" if {
	_well_formed
	not _scope_granted
}

denials contains "tokens.policy_claims_exceed_grant" if {
	_well_formed
	_scope_granted
	covering := _covering(input.caller.grants)
	not _obligations(covering)
}

denials contains "tokens.ttl_exceeds_grant" if {
	_well_formed
	obligations := _obligations(_covering(input.caller.grants))
	ttl_seconds := input.request.ttl_seconds
	not _lifetime_permitted(ttl_seconds, obligations)
}

denials contains code if {
	_well_formed
	some code in data.kkp.conditions.denials
}

_well_formed if {
	is_string(input.request.backend)
	is_string(input.request.key_id)
	is_string(input.claims.sub)
	is_string(input.claims.aud)
	is_array(input.claims.ops)
	is_object(input.claims.policy_claims)
	input.claims.backend == input.request.backend
	input.claims.key_id == input.request.key_id
	input.request.subject in {null, input.claims.sub}
	_ttl_well_formed
}

_ttl_well_formed if {
	input.request.ttl_seconds == null
} else if {
	is_number(input.request.ttl_seconds)
	input.request.ttl_seconds > 0
}

_own_credential if input.caller.method != "kkp_token"

_scope_granted if {
	some grant in input.caller.grants
	data.kkp.grants.names_key(grant, input.request)
	input.claims.aud in grant.audiences
	every op in input.claims.ops {
		op in grant.ops
	}
} else if {
	data.kkp.caller.exempt
}

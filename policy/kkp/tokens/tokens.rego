# METADATA
# title: Issuing tokens
# description: |
#   `input.claims` is what would be signed. One grant must name the key, the audience, every operation and
#   every policy claim; a token never begets a token; only a role that acts for others names another subject.
package kkp.tokens

# METADATA
# title: The token may be issued
permitted if {
	_well_formed
	_own_credential
	_subject_permitted
	_covered
	_ttl_permitted
	data.kkp.conditions.claims_agree
}

# METADATA
# title: Why a token is granted
# description: KKP signs a token for another subject only where `tokens.delegated` says so in as many words.
# scope: document
default grounds := ["tokens.granted"]

grounds := ["tokens.delegated", "tokens.granted"] if input.claims.sub != input.caller.id

# METADATA
# title: Why a token is refused
# scope: document
denials contains "tokens.malformed_input" if not _well_formed

denials contains "tokens.needs_own_credential" if not _own_credential

denials contains "tokens.subject_not_caller" if {
	_well_formed
	not _subject_permitted
}

denials contains "tokens.no_grant" if {
	_well_formed
	not _scope_granted
}

denials contains "tokens.policy_claims_exceed_grant" if {
	_well_formed
	_scope_granted
	not _covered
}

denials contains "tokens.ttl_exceeds_grant" if {
	_well_formed
	_covered
	not _ttl_permitted
}

denials contains code if {
	_well_formed
	some code in data.kkp.conditions.denials
}

# METADATA
# title: What KKP must do besides
# description: Where every covering grant limits the lifetime, the longest of those limits holds.
# scope: document
default obligations := {}

obligations := {"max_ttl": max(_limits)} if {
	input.action == "issue_token"
	count(_limits) > 0
	count(_limits) == count(_covering)
	not data.kkp.caller.exempt
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

_subject_permitted if {
	input.claims.sub == input.caller.id
} else if {
	data.kkp.caller.acts_for_others
	input.claims.act.sub == input.caller.id
}

_covered if {
	count(_covering) > 0
} else if {
	data.kkp.caller.exempt
}

_ttl_permitted if {
	input.request.ttl_seconds == null
} else if {
	some grant in _covering
	input.request.ttl_seconds <= object.get(grant, "max_ttl", input.request.ttl_seconds)
} else if {
	data.kkp.caller.exempt
}

_scope_granted if {
	some grant in input.caller.grants
	_in_scope(grant)
} else if {
	data.kkp.caller.exempt
}

_covering := [grant |
	some grant in input.caller.grants
	_in_scope(grant)
	data.kkp.grants.allows_claims(grant, input.claims.policy_claims)
	_limit_well_formed(object.get(grant, "max_ttl", 1))
]

_limits := [grant.max_ttl | some grant in _covering]

_in_scope(grant) if {
	data.kkp.grants.names_key(grant, input.request)
	input.claims.aud in grant.audiences
	every op in input.claims.ops {
		op in grant.ops
	}
}

_limit_well_formed(limit) if {
	is_number(limit)
	limit > 0
}

# A KKP token is a capability for the envelopes it names, and for nothing else.
_own_credential if input.caller.method != "kkp_token"

# METADATA
# title: Issuing tokens
# description: |
#   `input.claims` is what would be signed. One grant must name the key, the audience, every operation and
#   every policy claim; a token never begets a token; only a role that acts for others names another subject.
package kkp.tokens

# METADATA
# title: The token may be issued
# description: If all of this holds, on these grounds and under these obligations.
permit := {"reasons": grounds, "obligations": obligations} if {
	# Types first, before any line looks inside.
	is_string(input.request.backend)
	is_string(input.request.key_id)
	is_object(input.request.envelope)
	is_string(input.claims.sub)
	is_string(input.claims.aud)
	is_array(input.claims.ops)
	is_object(input.claims.policy_claims)

	# The claims say what was asked for.
	input.claims.backend == input.request.backend
	input.claims.key_id == input.request.key_id
	input.request.subject in {null, input.claims.sub}

	# A KKP token is a capability for the envelopes it names, and for nothing else.
	input.caller.method != "kkp_token"

	# The subject is the caller, or one that the caller may act for.
	grounds := _grounds(input.claims, input.caller)

	# A grant covers the token, or a role that needs none, and the lifetime is within its limit.
	obligations := _obligations(_covering(input.caller.grants))
	_lifetime_permitted(input.request.ttl_seconds, obligations)

	# Nothing known contradicts a policy claim. This holds for everyone, admins included.
	every name, value in input.claims.policy_claims {
		object.get(input.request.envelope, ["context", name], value) == value
		object.get(input.caller.attributes, name, value) == value
		object.get(input.request.context, name, value) == value
	}
}

# KKP signs a token for another subject only where `tokens.delegated` says so in as many words.
_grounds(claims, caller) := ["tokens.granted"] if {
	claims.sub == caller.id
} else := ["tokens.delegated", "tokens.granted"] if {
	claims.act.sub == caller.id
	data.kkp.caller.acts_for_others
}

# The grants that cover the whole token: each alone, never parts of several.
_covering(grants) := [grant |
	some grant in grants
	data.kkp.grants.names_key(grant, input.request)
	input.claims.aud in grant.audiences
	every op in input.claims.ops {
		op in grant.ops
	}
	every name, value in input.claims.policy_claims {
		value in grant.policy_claims[name]
	}
]

# One covering grant without a limit is enough; where each has one, the longest holds. A limit that is not a
# positive number makes its grant cover nothing. Undefined where neither a grant nor a role covers the token.
_obligations(covering) := {} if {
	some grant in covering
	not "max_ttl" in object.keys(grant)
} else := {} if {
	data.kkp.caller.exempt
} else := {"max_ttl": max(limits)} if {
	limits := [grant.max_ttl | some grant in covering; is_number(grant.max_ttl); grant.max_ttl > 0]
	count(limits) > 0
}

# A lifetime that was not asked for is KKP's to shorten.
_lifetime_permitted(seconds, obligations) if {
	seconds == null
} else if {
	is_number(seconds)
	seconds > 0
	seconds <= object.get(obligations, "max_ttl", seconds)
}

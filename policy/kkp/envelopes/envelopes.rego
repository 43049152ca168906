# METADATA
# title: Encrypting and decrypting envelopes
# description: |
#   `input.claims` are those of the verified token, `{}` where none was shown. Decrypting always needs a
#   token; encrypting needs one only where nothing else says who is calling. What the code checks against
#   the bytes actually used (key, operation, subject, context) is demanded here again.
package kkp.envelopes

# METADATA
# title: The operation is permitted
# description: If all of this holds.
permit := {"reasons": ["envelopes.granted"], "obligations": {}} if {
	# Types first, before any line looks inside.
	is_string(input.request.backend)
	is_string(input.request.key_id)
	is_object(input.request.envelope.context)

	# The envelope's labels name the requested key.
	input.request.envelope.backend == input.request.backend
	input.request.envelope.key_id == input.request.key_id

	# A token allows the operation, under its policy claims; or none is needed, and there are none.
	policy_claims := _policy_claims(input.claims)

	# A grant covers the operation, or a role that needs none.
	_covered(policy_claims)

	# Nothing known contradicts a policy claim. This holds for everyone, admins included.
	every name, value in policy_claims {
		object.get(input.request.envelope.context, name, value) == value
		object.get(input.caller.attributes, name, value) == value
		object.get(input.request.context, name, value) == value
	}
}

# Those of a token that is for this key, operation, caller and envelope.
_policy_claims(claims) := policy_claims if {
	# Types first, before any line looks inside.
	is_array(claims.ops)
	policy_claims := claims.policy_claims
	is_object(policy_claims)
	context := object.get(claims, "context", {})
	is_object(context)

	# The token is for this key and operation; the caller is its subject, or asked for it.
	claims.backend == input.request.backend
	claims.key_id == input.request.key_id
	input.action in claims.ops
	input.caller.id in [claims.sub, object.get(claims, ["act", "sub"], null)]

	# The envelope has every pair of context that the token demands.
	every name, value in context {
		input.request.envelope.context[name] == value
	}

	# Whoever shows the token is the one it was made for.
	_bound(claims)
} else := {} if {
	claims == {}
	input.action == "encrypt"
	input.caller.method != "kkp_token"
}

# A bearer token whose audience is another service could be replayed to KKP by that service.
_bound(claims) if {
	input.caller.method != "kkp_token"
} else if {
	claims.aud == claims.iss
} else if {
	is_object(claims.cnf)
} else if {
	data.kkp.settings.bearer_tokens == "any"
}

# One grant names the key and the operation, and allows the policy claims and the envelope's context. A name
# that the grant restricts stays restricted where no claim of the token repeats it.
_covered(policy_claims) if {
	some grant in input.caller.grants
	data.kkp.grants.names_key(grant, input.request)
	input.action in grant.ops
	is_object(grant.policy_claims)
	every name, value in policy_claims {
		value in grant.policy_claims[name]
	}
	every name, value in input.request.envelope.context {
		value in object.get(grant.policy_claims, name, [value])
	}
} else if {
	data.kkp.caller.exempt
}

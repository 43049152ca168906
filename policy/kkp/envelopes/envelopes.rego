# METADATA
# title: Making, opening and moving envelopes
# description: |
#   `input.claims` are those of the verified token, `{}` where none was shown. Opening and moving always need
#   a token; making needs one only where nothing else says who is calling. A message key is released like a
#   plaintext, and generated like a ciphertext. Where an envelope moves, `input.request.envelope` is what it is
#   moved from, and `input.request.backend` and `.key_id` are where to. What the code checks against the bytes
#   actually used (key, operation, subject, context) is demanded here again.
package kkp.envelopes

# METADATA
# title: The operation is permitted
# description: If all of this holds, for what stays under its key or else for what moves to another.
permit := {"reasons": ["envelopes.granted"], "obligations": {}} if {
	# Types first, before any line looks inside.
	is_string(input.request.backend)
	is_string(input.request.key_id)
	is_object(input.request.envelope.context)

	# The envelope's labels name the requested key.
	input.request.envelope.backend == input.request.backend
	input.request.envelope.key_id == input.request.key_id

	# A token allows the operation, under its policy claims; or none is needed, and there are none.
	op := _op(input.action)
	policy_claims := _policy_claims(input.claims, op)

	# A grant covers the operation, or a role that needs none.
	_covered(input.request, op, policy_claims)

	# Nothing known contradicts a policy claim. This holds for everyone, admins included.
	every name, value in policy_claims {
		object.get(input.request.envelope.context, name, value) == value
		object.get(input.caller.attributes, name, value) == value
		object.get(input.request.context, name, value) == value
	}
} else := {"reasons": ["envelopes.granted"], "obligations": {}} if {
	input.action == "rewrap"
	_may_move
}

# What a token and a grant must have where the envelope stays under its key: a message key is generated like a
# ciphertext and released like a plaintext.
_op(action) := action if {
	action in {"decrypt", "encrypt"}
} else := "encrypt" if {
	action == "generate_data_key"
} else := "decrypt" if {
	action == "release_data_key"
}

# What moves to another key is opened under its own and made under the other, by one who may do both. All of
# this must hold.
_may_move if {
	# Types first, before any line looks inside.
	is_string(input.request.backend)
	is_string(input.request.key_id)
	is_string(input.request.envelope.backend)
	is_string(input.request.envelope.key_id)
	is_object(input.request.envelope.context)

	# A token allows to move the envelope, under its policy claims.
	policy_claims := _policy_claims(input.claims, "rewrap")

	# The caller may open it under its own key, and make it under the one that it moves to.
	_covered(input.request.envelope, "decrypt", policy_claims)
	_covered(input.request, "encrypt", policy_claims)

	# Nothing known contradicts a policy claim. This holds for everyone, admins included.
	every name, value in policy_claims {
		object.get(input.request.envelope.context, name, value) == value
		object.get(input.caller.attributes, name, value) == value
		object.get(input.request.context, name, value) == value
	}
}

# Those of a token that is for this key, operation, caller and envelope.
_policy_claims(claims, op) := policy_claims if {
	# Types first, before any line looks inside.
	is_array(claims.ops)
	policy_claims := claims.policy_claims
	is_object(policy_claims)
	context := object.get(claims, "context", {})
	is_object(context)

	# The token is for the envelope's own key and this operation; the caller is its subject, or asked for it.
	claims.backend == input.request.envelope.backend
	claims.key_id == input.request.envelope.key_id
	op in claims.ops
	input.caller.id in [claims.sub, object.get(claims, ["act", "sub"], null)]

	# The envelope has every pair of context that the token demands.
	every name, value in context {
		input.request.envelope.context[name] == value
	}

	# Whoever shows the token is the one it was made for.
	_bound(claims)
} else := {} if {
	claims == {}
	op == "encrypt"
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
_covered(key, op, policy_claims) if {
	some grant in input.caller.grants
	data.kkp.grants.names_key(grant, key)
	op in grant.ops
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

# METADATA
# title: What one grant covers
# description: |
#   Functions over a single grant, so that no request is covered by parts of several. A member that is
#   missing or of another type makes the function undefined, and the grant then covers nothing.
package kkp.grants

# METADATA
# title: The grant names the requested key
# description: Exactly, or by a prefix that ends in an asterisk.
names_key(grant, request) if {
	grant.backend == request.backend
	grant.key_id == request.key_id
} else if {
	grant.backend == request.backend
	is_string(grant.key_id)
	endswith(grant.key_id, "*")
	startswith(request.key_id, trim_suffix(grant.key_id, "*"))
}

# METADATA
# title: The grant allows every policy claim of the token
allows_claims(grant, claims) if {
	every name, value in claims {
		value in grant.policy_claims[name]
	}
}

# METADATA
# title: The grant allows what the envelope's context says
# description: A name that the grant restricts stays restricted where no claim of the token repeats it.
allows_context(grant, context) if {
	is_object(grant.policy_claims)
	every name, value in context {
		value in object.get(grant.policy_claims, name, [value])
	}
}

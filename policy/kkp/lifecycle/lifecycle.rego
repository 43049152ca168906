# METADATA
# title: Introspecting and revoking tokens
# description: |
#   `input.claims` are those of the token in question, `{}` where it is not good, or not any more. Whoever
#   may ask, may ask about any token: what the grounds say decides whether anything is told or ended, and a
#   token that does not concern the caller gets the answer of one that does not exist.
package kkp.lifecycle

# METADATA
# title: The caller may ask
# description: If all of this holds, on these grounds.
permit := {"reasons": _grounds, "obligations": {}} if {
	is_object(input.claims)
	is_object(input.request.envelope)
	_own_credential
}

# KKP tells of, and ends, a token that is not the caller's only where `lifecycle.any` says so.
default _grounds := ["lifecycle.unconcerned"]

_grounds := ["lifecycle.any"] if {
	data.kkp.caller.exempt
} else := ["lifecycle.concerned"] if {
	input.caller.id in [input.claims.sub, input.claims.aud, object.get(input.claims, ["act", "sub"], null)]
}

# METADATA
# title: Why the caller may not ask
denials contains "lifecycle.needs_own_credential" if not _own_credential

# A KKP token is a capability for the envelopes it names, and for nothing else.
_own_credential if input.caller.method != "kkp_token"

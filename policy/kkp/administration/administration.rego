# METADATA
# title: Running KKP itself
# description: The role decides alone, but a KKP token never stands in for the caller's own credential.
package kkp.administration

# METADATA
# title: The administrative actions
actions := {
	"approve",
	"explain_policy",
	"lift_revocation",
	"manage_account",
	"manage_identity",
	"read_audit",
	"read_revocations",
	"revoke",
	"revoke_signing_key",
	"rotate_signing_key",
}

# METADATA
# title: The action is permitted
# description: If all of this holds.
permit := {"reasons": ["administration.granted"], "obligations": {}} if {
	is_object(input.claims)
	is_object(input.request.envelope)
	data.kkp.caller.exempt
	_own_credential
}

# METADATA
# title: Why an administrative action is refused
denials contains "administration.needs_own_credential" if not _own_credential

# A KKP token is a capability for the envelopes it names, and for nothing else.
_own_credential if input.caller.method != "kkp_token"

# METADATA
# title: What contradicts a token's policy claims
# description: |
#   Where the envelope's authenticated context, the caller's attributes or the request's context has a
#   claim's name, its value must be the claim's. The request's context is the caller's word: it can only add
#   a refusal. This explains: each operation's `permit` demands the same itself.
package kkp.conditions

# METADATA
# title: Why a policy claim is refused
# description: The environment has a code of its own, being the claim that nearly every deployment uses.
# scope: document
denials contains "conditions.environment_mismatch" if {
	environment := input.claims.policy_claims.environment
	not _agrees("environment", environment)
}

denials contains "conditions.policy_claim_mismatch" if {
	some name, value in input.claims.policy_claims
	name != "environment"
	not _agrees(name, value)
}

_agrees(name, value) if {
	object.get(input.request.envelope, ["context", name], value) == value
	object.get(input.caller.attributes, name, value) == value
	object.get(input.request.context, name, value) == value
}

# METADATA
# title: A token's policy claims agree with everything known
# description: |
#   Where the envelope's authenticated context, the caller's attributes or the request's context has a
#   claim's name, its value is the claim's. This holds for everyone, admins included. The request's context
#   is the caller's word: it can only add a refusal.
package kkp.conditions

# METADATA
# title: Every policy claim agrees
claims_agree if {
	every name, value in object.get(input.claims, "policy_claims", {}) {
		_agrees(name, value)
	}
}

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

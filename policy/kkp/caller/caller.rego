# METADATA
# title: What the caller's roles say
# description: A role says which actions; data.kkp.roles holds them.
package kkp.caller

# METADATA
# title: Some role permits the action
permitted if {
	some name in input.caller.roles
	input.action in data.kkp.roles[name].actions
}

# METADATA
# title: Some role permits the action without a grant
exempt if {
	some name in input.caller.roles
	input.action in data.kkp.roles[name].actions
	data.kkp.roles[name].needs_grant == false
}

# METADATA
# title: Some role permits the action in another's name
acts_for_others if {
	some name in input.caller.roles
	input.action in data.kkp.roles[name].actions
	data.kkp.roles[name].acts_for_others == true
}

# METADATA
# title: What a grant names
# description: |
#   A function over a single grant, so that no request is covered by parts of several. A member that is
#   missing or of another type makes it undefined, and the grant then covers nothing.
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

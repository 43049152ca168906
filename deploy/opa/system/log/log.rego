# METADATA
# title: What a decision log may say
# description: |
#   Of the input, only what KKP's own audit has in clear. It is a list of what stays, so that whatever is
#   added to the input one day is left out until it is put here. Claims, contexts, attributes, grants and
#   the policy claims in them are never on it.
package system.log

# METADATA
# title: The mask
# description: OPA asks with the log's event as input. The question's own input stands in it under that name.
# entrypoint: true
default mask := ["/input"]

mask := [{"op": "upsert", "path": "/input", "value": _kept}] if is_object(input.input)

_kept["action"] := input.input.action if is_string(input.input.action)

_kept[part] := object.filter(input.input[part], names) if {
	some part, names in _kept_members
	is_object(input.input[part])
}

_kept_members := {
	"caller": ["id", "issuer", "kind", "method", "roles"],
	"environment": ["client_ip", "time"],
	"request": ["backend", "key_id"],
}

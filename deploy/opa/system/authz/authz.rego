# METADATA
# title: What this OPA may be asked
# description: |
#   KKP's questions, and whether OPA is healthy. Everything else is refused, to whoever else can reach the
#   socket: another policy or data put in place, the configuration, the bundle's text.
package system.authz

# METADATA
# title: May this request be served?
# entrypoint: true
default allow := false

allow if {
	input.method == "POST"
	input.path in _questions
}

# KKP asks this, and only this, where a policy leaves its decision on an empty input open.
allow if {
	input.method == "POST"
	input.path == ["v1", "compile"]
	input.body == {"query": "data.kkp.authz.decision"}
}

allow if {
	input.method == "GET"
	input.path in _observations
}

_questions := [
	["v1", "data", "kkp", "authz", "decision"],
	["v1", "data", "kkp", "authz", "allow"],
]

_observations := [["health"], ["metrics"]]

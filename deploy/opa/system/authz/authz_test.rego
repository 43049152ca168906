package system.authz_test

test_the_questions_of_kkp_are_served if {
	every rule in ["decision", "allow"] {
		data.system.authz.allow with input as {"method": "POST", "path": ["v1", "data", "kkp", "authz", rule]}
	}
}

test_whether_there_is_a_decision_at_all_may_be_asked if {
	data.system.authz.allow with input as {
		"method": "POST",
		"path": ["v1", "compile"],
		"body": {"query": "data.kkp.authz.decision"},
	}
}

test_nothing_else_may_be_compiled if {
	every body in [{}, {"query": "data"}, {"query": "data.kkp.authz.decision", "input": {}}] {
		not data.system.authz.allow with input as {"method": "POST", "path": ["v1", "compile"], "body": body}
	}
}

test_health_and_metrics_may_be_read if {
	every name in ["health", "metrics"] {
		data.system.authz.allow with input as {"method": "GET", "path": [name]}
	}
}

test_everything_else_is_refused if {
	every request in [
		{},
		{"method": "GET", "path": ["v1", "data", "kkp", "authz", "decision"]},
		{"method": "GET", "path": ["v1", "data"]},
		{"method": "GET", "path": ["v1", "policies"]},
		{"method": "GET", "path": ["v1", "config"]},
		{"method": "GET", "path": ["health", "x"]},
		{"method": "PUT", "path": ["v1", "policies", "system", "log"]},
		{"method": "PUT", "path": ["v1", "data", "kkp", "authz", "decision"]},
		{"method": "PATCH", "path": ["v1", "data", "kkp", "roles"]},
		{"method": "DELETE", "path": ["v1", "policies", "kkp"]},
		{"method": "POST", "path": ["v1", "data", "kkp", "authz"]},
		{"method": "POST", "path": ["v1", "data", "kkp", "authz", "decision", "allow"]},
		{"method": "POST", "path": ["v0", "data", "kkp", "authz", "decision"]},
		{"method": "POST", "path": ["v1", "query"]},
		{"method": "POST", "path": []},
	] {
		not data.system.authz.allow with input as request
	}
}

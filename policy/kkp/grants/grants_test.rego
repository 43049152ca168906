package kkp.grants_test

_names(pattern, key_id) if {
	grant := {"backend": "aws", "key_id": pattern}
	data.kkp.grants.names_key(grant, {"backend": "aws", "key_id": key_id})
}

test_an_exact_key_is_named if _names("alias/orders", "alias/orders")

test_a_longer_key_is_not_named if not _names("alias/orders", "alias/orders2")

test_a_prefix_names_what_begins_with_it if _names("alias/ord*", "alias/orders")

test_a_prefix_does_not_name_what_is_shorter if not _names("alias/orders-*", "alias/orders")

test_an_asterisk_inside_is_literal if not _names("alias/*s", "alias/orders")

test_a_pattern_that_is_no_text_names_nothing if not _names(["*"], "alias/orders")

test_another_backend_is_not_named if {
	grant := {"backend": "gcp", "key_id": "alias/orders"}
	not data.kkp.grants.names_key(grant, {"backend": "aws", "key_id": "alias/orders"})
}

test_a_grant_without_members_names_nothing if {
	not data.kkp.grants.names_key({}, {"backend": "aws", "key_id": "alias/orders"})
}

test_every_claim_must_be_allowed if {
	grant := {"policy_claims": {"environment": ["prod"], "region": ["eu", "us"]}}
	data.kkp.grants.allows_claims(grant, {})
	data.kkp.grants.allows_claims(grant, {"environment": "prod", "region": "us"})
	not data.kkp.grants.allows_claims(grant, {"environment": "prod", "region": "mars"})
	not data.kkp.grants.allows_claims(grant, {"environment": "prod", "team": "blue"})
}

test_a_grant_without_claims_allows_none if {
	not data.kkp.grants.allows_claims({}, {"environment": "prod"})
}

test_a_context_is_restricted_in_the_names_the_grant_has if {
	grant := {"policy_claims": {"environment": ["prod"]}}
	data.kkp.grants.allows_context(grant, {"table": "orders"})
	data.kkp.grants.allows_context(grant, {"environment": "prod"})
	not data.kkp.grants.allows_context(grant, {"environment": "dev"})
}

test_an_empty_list_allows_no_value if {
	not data.kkp.grants.allows_context({"policy_claims": {"environment": []}}, {"environment": "prod"})
}

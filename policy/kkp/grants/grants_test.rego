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

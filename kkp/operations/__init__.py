"""The verbs: what KKP does once a caller is known and a decision is on record."""

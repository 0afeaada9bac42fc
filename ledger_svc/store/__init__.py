"""All SQL of the ledger, one module a concern. What posts is in the migrations' functions: one call is one commit."""

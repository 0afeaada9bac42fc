"""All SQL of the gateway, one module a concern."""

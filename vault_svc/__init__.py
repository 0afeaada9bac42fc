"""Secrets at rest, opened for the gateway alone. Nothing of what they are used for."""

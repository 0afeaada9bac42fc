"""Logs, metrics and traces. Their names are declared in this package and nowhere else."""

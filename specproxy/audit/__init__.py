"""Audits: a served answer computed again by an independent path, and compared."""

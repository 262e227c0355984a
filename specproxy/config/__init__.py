"""The start configuration: what is loaded, where it listens."""

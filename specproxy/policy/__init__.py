"""The policy language: files in, one decision per request out. Imports neither engine nor server."""

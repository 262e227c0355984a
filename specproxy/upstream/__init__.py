"""Existing OpenAI-compatible servers as backends: requests go there as they are, answers come back byte for byte."""

"""Measurements: speculation on against off, over HTTP, paired; and how others do on the same prompts."""

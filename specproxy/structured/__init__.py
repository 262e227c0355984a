"""Grammars of structured outputs: which tokens may follow, and what a finished answer has to be."""

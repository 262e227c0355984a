"""Training: drafting heads and draft models learn from the target's own answers. Written in the published formats."""

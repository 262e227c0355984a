"""Heads: small modules that draft from the target's hidden states. Published checkpoints load as they are."""

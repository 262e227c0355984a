"""Drafters: whatever guesses the target's next tokens. One file each; ``registry`` finds them by type name."""

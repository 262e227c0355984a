"""Who is served by which arm: a function of the conversation, so that a chat never flips back and forth.

A key's place in [0, 1) comes from a salted hash, and an arm takes all places below its share: whoever is in at 5 % is
in at 25 %. The canary's salt is the revision, so that the same people are not always the first; the hold-out's is the
route, so that it stays the same conversations across revisions, and is independent of every canary.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Arm = Literal["plain", "candidate", "active"]


def place(salt: str, key: str) -> float:
    """The key's place in [0, 1), uniform over keys, and independent between salts."""
    text = f"{len(salt)}:{salt}{key}".encode()
    # 53 bits: a double holds them exactly, so the place is below 1.
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11) / 2**53


def in_canary(revision: str, key: str, share: float) -> bool:
    """Whether the conversation ``key`` is in the canary of ``revision`` at ``share`` (0 to 1)."""
    return place(f"canary:{revision}", key) < share


def in_hold_out(route: str, key: str, share: float) -> bool:
    """Whether the conversation ``key`` is served plain for good on ``route``, at ``share`` (0 to 1)."""
    return place(f"hold_out:{route}", key) < share


def arm_of(route: str, key: str, *, hold_out: float, candidate: str | None = None, share: float = 0.0) -> Arm:
    """The arm of a conversation: the hold-out first, then the candidate revision's canary, then what is active.

    ``key``: prompt_cache_key, conversation id or a hash of both and the API key, as the policy defines a conversation.
    """
    if in_hold_out(route, key, hold_out):
        return "plain"
    if candidate is not None and in_canary(candidate, key, share):
        return "candidate"
    return "active"

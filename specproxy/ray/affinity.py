"""Which replica a request goes to: the one that has its prompt's pages already, unless that one is loaded above bound.

Every replica keeps the pages of the prompts that it has seen (``engine/pages.py``), so requests that begin alike should
meet there. The key is a hash of how a request begins; each key has an order of all replicas of its own (rendezvous
hashing: Thaler and Ravishankar, 1998), so that a replica that comes or goes moves only the keys that it gains or had.
A replica whose requests would exceed ``bound`` times the mean is passed over for the next in the key's order, which is
then the one that learns the prefix (consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, arXiv
1608.01350). The same key and loads give the same place in every process.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from specproxy.ray.call import Call

PREFIX_CHARS = 2048
"""Characters of the prompt that the key is made of: beyond them, requests that begin alike are alike."""

_KEY_BYTES = 16


def key_of(body: bytes, authorization: str, prefix_chars: int = PREFIX_CHARS) -> str:
    """What a request is placed by; empty where nothing is known of it.

    Of a chat, the messages up to the first of a user: later turns of a conversation begin with them too. What keeps
    requests from sharing pages (another API key or ``cache_salt``) is part of it, and so is ``prompt_cache_key``, by
    which a client says what belongs together. A body that cannot be read has no key: a replica says what is wrong.
    """
    try:
        request = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return ""
    if not isinstance(request, dict):
        return ""
    named = request.get("prompt_cache_key")
    beginning = named if isinstance(named, str) and named else _beginning(request)[:prefix_chars]
    if not beginning:
        return ""
    parts = [authorization, request.get("model"), request.get("cache_salt"), bool(named), beginning]
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=_KEY_BYTES).hexdigest()


def _beginning(request: Mapping[str, Any]) -> str:
    messages = request.get("messages")
    if not isinstance(messages, list):
        prompt = request.get("prompt")
        return "" if prompt is None else prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()
    first = []
    for message in messages:
        first.append(message)
        if isinstance(message, dict) and message.get("role") == "user":
            break
    return msgspec.json.encode(first).decode()


def order_of(key: str, names: Collection[str]) -> list[str]:
    """All replicas in the key's own order."""

    def weight(name: str) -> bytes:
        return hashlib.blake2b(f"{key}\0{name}".encode(), digest_size=_KEY_BYTES).digest()

    return sorted(names, key=weight)


def places(call: Call, loads: Mapping[str, int], bound: float) -> list[str]:
    """Every replica, the one to ask first in front. ``loads``: requests by replica; ``bound``: at least 1.

    Replicas that the call was sent to before come last.
    """
    # The request itself counts, so that some replica always has room.
    most = math.ceil(bound * (sum(loads.values()) + 1) / max(1, len(loads)))
    order = order_of(call.key, loads)
    full = [name for name in order if loads[name] >= most]
    order = [name for name in order if loads[name] < most] + sorted(full, key=lambda name: loads[name])
    return sorted(order, key=lambda name: name in call.avoid)

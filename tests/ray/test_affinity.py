"""Where requests are placed: pure functions of key, replicas and loads."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specproxy.ray.affinity import key_of, order_of, places
from specproxy.ray.call import Call

SYSTEM = {"role": "system", "content": "You are of help. " * 200}


def key(*messages: dict[str, str], authorization: str = "", **more: object) -> str:
    """The key of a chat."""
    return key_of(msgspec.json.encode({"model": "m", "messages": messages, **more}), authorization)


def user(text: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": text}


def call(name: str, *avoid: str) -> Call:
    """A call with this key."""
    return Call("POST", "/", (), b"", name, avoid)


def test_turns_of_a_conversation_have_one_key() -> None:
    """Later turns, and other parameters, leave the key; another first message does not."""
    first = key(user("Hello."))
    assert key(user("Hello."), {"role": "assistant", "content": "Yes?"}, user("Go on."), temperature=1) == first
    assert key(user("Goodbye.")) != first


def test_a_long_system_prompt_is_a_key_of_its_own() -> None:
    """Conversations under one long system prompt share its pages, and so the key."""
    assert key(SYSTEM, user("One.")) == key(SYSTEM, user("Two."))


@pytest.mark.parametrize("other", [{"authorization": "Bearer b"}, {"cache_salt": "s"}, {"model": "n"}])
def test_what_shares_no_pages_shares_no_key(other: dict[str, str]) -> None:
    """Another API key, salt or model has a key of its own."""
    assert key(user("Hello."), **other) != key(user("Hello."))


def test_a_client_may_name_what_belongs_together() -> None:
    """``prompt_cache_key`` stands in for the prompt."""
    assert key(user("One."), prompt_cache_key="k") == key(user("Two."), prompt_cache_key="k")


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"messages": []}', b'{"messages": 3}', b'{"prompt": ""}'])
def test_no_body_is_too_broken(body: bytes) -> None:
    """What cannot be read goes anywhere; whoever gets it says what is wrong."""
    assert len(key_of(body, "")) in (0, 32)


def test_completions_are_placed_by_their_prompts_beginning() -> None:
    """Prompts of text or of token ids that begin alike have one key."""
    prompts = ["a" * 4000 + "b", "a" * 4000 + "c", [7] * 4000 + [8], [7] * 4000 + [9]]
    keys = [key_of(msgspec.json.encode({"prompt": prompt}), "") for prompt in prompts]
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_keys_are_spread_evenly() -> None:
    """Of many keys, each replica is the first of about its share."""
    counts = Counter(order_of(str(i), list("abcd"))[0] for i in range(4000))
    assert all(900 < counts[name] < 1100 for name in "abcd")


@given(st.text(max_size=5), st.sets(st.text(min_size=1, max_size=3), min_size=2, max_size=8))
def test_a_replica_that_goes_moves_only_its_own_keys(name: str, replicas: set[str]) -> None:
    """Without one of them the others keep their order."""
    order = order_of(name, replicas)
    assert order_of(name, replicas - {order[0]}) == order[1:]
    assert order_of(name, replicas - {order[-1]}) == order[:-1]


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 30), min_size=1), st.floats(1.0, 3.0))
def test_nobody_is_loaded_above_the_bound(loads: dict[str, int], bound: float) -> None:
    """The first place has room under the bound, and it is the first in the key's order that has."""
    found = places(call("k"), loads, bound)
    most = bound * (sum(loads.values()) + 1) / len(loads)
    assert loads[found[0]] < most + 1
    passed = order_of("k", loads)[: order_of("k", loads).index(found[0])]
    assert all(loads[name] >= most for name in passed)
    assert sorted(found) == sorted(loads)


def test_a_replica_that_failed_comes_last() -> None:
    """A call that comes again goes elsewhere, as long as there is anywhere else."""
    first = places(call("k"), {"a": 0, "b": 0}, 1.5)[0]
    assert places(call("k", first), {"a": 0, "b": 0}, 1.5)[-1] == first
    assert places(call("k", first), {first: 9}, 1.5) == [first]

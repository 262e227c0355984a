"""How an answer may end, by its tokens alone."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from specproxy.audit.ending import ending_fault
from specproxy.bundle import AuditBundle
from specproxy.vocabulary import Numerics, SamplingParams

NUMERICS = Numerics("f", "cpu", "float32", "2", "bitwise", [1], 128, 1, 1, "fused")
EOS = frozenset([2])
WHOLE = AuditBundle("r", "m", NUMERICS, [5, 6], [7, 8, 9], "length", SamplingParams(max_tokens=3), 1, 0, "chat", "v")


@pytest.mark.parametrize(
    ("change", "params"),
    [
        ({}, {}),
        ({"output": [7, 8, 2], "finish_reason": "stop", "stop_token": 2}, {}),
        ({"output": [7, 2], "finish_reason": "stop", "stop_token": 2}, {"max_tokens": 9}),
        ({"output": [7, 4], "finish_reason": "stop", "stop_token": 4}, {"stop_token_ids": (4,), "max_tokens": 9}),
        ({"output": [7, 2, 9]}, {"ignore_eos": True}),
        ({"output": [7] * 8}, {"max_tokens": 50}),
        ({"output": []}, {"max_tokens": 0}),
        ({"output": [7], "finish_reason": "abort"}, {}),
        ({"output": [7], "finish_reason": "stop", "stop": (".",)}, {}),
        ({"finish_reason": "stop", "stop": (".",)}, {}),
    ],
    ids=str,
)
def test_a_right_end_is_none_to_mention(change: dict[str, Any], params: dict[str, Any]) -> None:
    """Limits, end-of-sequence and stop ids, the end of the context, stop strings, a client that left."""
    bundle = replace(WHOLE, **change, params=replace(WHOLE.params, **params))
    assert ending_fault(bundle, EOS, 10) is None


@pytest.mark.parametrize(
    ("change", "params", "word"),
    [
        ({"finish_reason": "stop"}, {}, "length"),
        ({"output": [7, 8]}, {}, "not over"),
        ({"output": [7, 8, 9, 10]}, {}, "goes on"),
        ({"output": [7, 2, 9]}, {}, "goes on"),
        ({"output": [7, 2, 9], "finish_reason": "abort"}, {}, "goes on"),
        ({"output": [7, 8, 2]}, {}, "stop"),
        ({"output": [7, 8, 2], "finish_reason": "stop"}, {}, "stop_token"),
        ({"output": [7, 8, 2], "finish_reason": "stop", "stop_token": 3}, {}, "stop_token"),
        ({"stop_token": 9}, {}, "stop_token"),
        ({"output": [7, 8], "finish_reason": "stop", "stop_token": 8}, {"max_tokens": 9}, "not over"),
        ({"output": []}, {}, "not over"),
    ],
    ids=str,
)
def test_a_wrong_end_is_named(change: dict[str, Any], params: dict[str, Any], word: str) -> None:
    """What the tokens say and what was told differ: a finding that says how."""
    fault = ending_fault(replace(WHOLE, **change, params=replace(WHOLE.params, **params)), EOS, 10)
    assert fault is not None
    assert (fault.what, fault.explained) == ("ending", False)
    assert word in fault.text

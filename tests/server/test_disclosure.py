"""Disclosure: headers and the ``specproxy`` object say what was decided and what happened."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from specproxy.server.disclosure import allowed_k, decision_headers, exactness_of, mean_accepted_length, what_happened
from specproxy.vocabulary import Decision, DraftCounts, DrafterInfo, ModelInfo, Numerics, RequestRecord
from specproxy.wire.frames import Hello

LOADED = [DrafterInfo("ngram", "ngram", 16, None, "f"), DrafterInfo("draft", "draft_model", 8, 2048, "f")]
NUMERICS = Numerics("n", "cpu", "float32", "2", "bitwise", [1, 8], 128, 2, 2, "fused")
HELLO = Hello(1, ModelInfo("house", "m", 2048, 8192, [2]), NUMERICS, LOADED, 64, 16, 32, 1.0)
DECISION = Decision("chat", "a" * 64, "any request", drafters=("ngram", "draft"), k_max=6)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "0-6"),
        ({"k_min": 2}, "2-6"),
        ({"k_max": None}, "0-16"),
        ({"k_max": 5, "k_min": 5, "adaptive": False}, "5"),
        ({"drafters": ("draft",), "k_max": 12}, "0-8"),
        ({"drafters": (), "k_max": 0}, "0"),
    ],
)
def test_the_range_of_k_is_the_policys_within_the_drafters_limits(change: dict[str, Any], expected: str) -> None:
    """What the header says is what can happen."""
    assert allowed_k(replace(DECISION, **change), LOADED) == expected


def test_headers_name_route_rule_short_revision_drafters_and_seed() -> None:
    """All that is known before the first token; no reason while there is none."""
    headers = decision_headers(DECISION, 42, HELLO)
    assert headers == {
        "x-specproxy-route": "chat",
        "x-specproxy-rule": "any request",
        "x-specproxy-policy": "a" * 12,
        "x-specproxy-drafter": "ngram,draft",
        "x-specproxy-k": "0-6",
        "x-specproxy-seed": "42",
        "x-specproxy-exactness": "bitwise",
    }


def test_a_header_never_carries_a_line_break_of_a_policy_file() -> None:
    """Names of routes and rules come from files; a header ends at a line break."""
    headers = decision_headers(replace(DECISION, rule="é\r\nx: y", reason="off"), 1, HELLO)
    assert headers["x-specproxy-rule"] == "???x: y"
    assert headers["x-specproxy-reason"] == "off"


def test_the_exactness_is_the_weaker_of_route_and_engine() -> None:
    """A route may ask for numeric, and an engine may only have that."""
    assert exactness_of(replace(DECISION, exactness="numeric"), HELLO) == "numeric"
    weak = Hello(1, HELLO.model, replace(NUMERICS, exactness="numeric"), [], 64, 16, 32, 1.0)
    assert exactness_of(DECISION, weak) == "numeric"


def test_the_mean_accepted_length_counts_the_bonus_token() -> None:
    """As vLLM does: 1 means that nothing was accepted."""
    assert mean_accepted_length(10, 25) == 3.5
    assert mean_accepted_length(0, 0) == 1.0


def test_the_object_sums_drafters_and_lists_them() -> None:
    """What clients and the bench read."""
    record = RequestRecord("r", "/v1/completions", "house", "chat", "a" * 64, "any", "active", 7, False, 0.0)
    record.drafts = [DraftCounts("ngram", 2, 6, 3, [2, 2, 2], [2, 1, 0]), DraftCounts("draft", 2, 4, 1)]
    record.drafted, record.accepted, record.steps = 10, 4, 5
    ours = what_happened(record)
    assert (ours["drafted"], ours["accepted"], ours["steps"]) == (10, 4, 5)
    assert ours["mean_accepted_length"] == 2.0
    assert [each["name"] for each in ours["drafters"]] == ["ngram", "draft"]
    assert ours["drafters"][0]["accepted_at"] == [2, 1, 0]

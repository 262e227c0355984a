"""Quotas: what a key with limits may use, on a clock that only moves when told."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from specproxy.config.keys import KeyLimits, load_keys
from specproxy.config.schema import KeysConfig
from specproxy.errors import ConfigError, KeyLimited
from specproxy.server.quotas import Quotas, duration

DIGEST = hashlib.sha256(b"a-secret").hexdigest()


@dataclass
class Clock:
    """Seconds, as a test says."""

    now: float = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Stands still."""
    return Clock()


def use(quotas: Quotas, tokens: int = 0) -> dict[str, str]:
    """One request from start to end; the headers of its answer. Raises KeyLimited."""
    with quotas.look("a") as one:
        one.tokens = tokens
    return one.headers()


def refused(quotas: Quotas) -> KeyLimited:
    """The refusal of the next request."""
    with pytest.raises(KeyLimited) as caught, quotas.look("a"):
        pass
    return caught.value


def test_requests_a_second(clock: Clock) -> None:
    """A second's worth at once, then one whenever the rate brings one; who is refused learns when, and uses nothing."""
    quotas = Quotas({"a": KeyLimits(requests_per_s=4)}, clock)
    left = [use(quotas)["x-ratelimit-remaining-requests"] for _ in range(4)]
    assert left == ["3", "2", "1", "0"]
    for _ in range(3):
        error = refused(quotas)
        assert (error.status, error.type, error.code) == (429, "requests", "rate_limit_exceeded")
        assert error.retry_after_s == pytest.approx(0.25)
    clock.now += 0.25
    assert use(quotas)["x-ratelimit-reset-requests"] == "1s"
    refused(quotas)
    clock.now += 3600
    assert [use(quotas) for _ in range(4)]
    refused(quotas)


def test_less_than_one_request_a_second(clock: Clock) -> None:
    """One, and the next in twenty seconds."""
    quotas = Quotas({"a": KeyLimits(requests_per_s=0.05)}, clock)
    assert use(quotas)["x-ratelimit-reset-requests"] == "20s"
    assert refused(quotas).retry_after_s == pytest.approx(20)
    clock.now += 20
    use(quotas)


def test_tokens_are_counted_when_the_answer_is_there(clock: Clock) -> None:
    """Exactly as many as it took, though it took more than was left: what is missing has to come back first."""
    quotas = Quotas({"a": KeyLimits(tokens_per_min=600)}, clock)
    assert use(quotas, 150) == {
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "450",
        "x-ratelimit-reset-tokens": "15s",
    }
    assert use(quotas, 849)["x-ratelimit-remaining-tokens"] == "0"
    error = refused(quotas)
    assert (error.type, error.retry_after_s) == ("tokens", pytest.approx(40))
    clock.now += 39.8
    refused(quotas)
    clock.now += 0.3
    assert use(quotas)["x-ratelimit-remaining-tokens"] == "2"


def test_requests_at_once(clock: Clock) -> None:
    """Places come back however a request ends, also by an error; a refused one holds none."""
    quotas = Quotas({"a": KeyLimits(concurrent=2)}, clock)
    with quotas.look("a"), quotas.look("a") as second:
        assert refused(quotas).retry_after_s == 1.0
        assert second.headers() == {}
    with pytest.raises(RuntimeError), quotas.look("a"):
        raise RuntimeError
    with quotas.look("a"), quotas.look("a"):
        refused(quotas)


def test_keys_do_not_share_and_others_are_not_bound(clock: Clock) -> None:
    """Each has its own; a key without limits, or an unknown one, leaves nothing behind."""
    quotas = Quotas({"a": KeyLimits(requests_per_s=1), "b": KeyLimits(requests_per_s=1)}, clock)
    use(quotas)
    with quotas.look("b"):
        refused(quotas)
    assert [quotas.bind(key) for key in ("a", "b", "c", "")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0201, "21ms"), (0.9999, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (360, "6m0s"), (61.2, "1m2s")],
)
def test_times_are_written_as_openai_does(seconds: float, text: str) -> None:
    """Rounded up, so that who waits so long is not refused again."""
    assert duration(seconds) == text


def test_limits_stand_behind_a_key(tmp_path: Path) -> None:
    """In any order, some or all of them; the environment's keys have none."""
    file = tmp_path / "keys"
    file.write_text(
        f"a: {DIGEST} concurrent=4   requests_per_s=2.5 # slow\nb: {'0' * 64}\nc: {'1' * 64} tokens_per_min=9\n"
    )
    ring = load_keys(KeysConfig(file=str(file)), {"SPECPROXY_API_KEYS": "x"})
    assert ring.lookup("a-secret") == "a"
    assert ring.limits == {"a": KeyLimits(2.5, None, 4), "c": KeyLimits(tokens_per_min=9)}


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        ("concurrent=0", ":1: concurrent= must be a whole number above 0"),
        ("tokens_per_min=1.5", ":1: tokens_per_min= must be a whole number"),
        ("requests_per_s=1.2.3", ":1: requests_per_s= must be a number above 0"),
        ("per_day=3", ":1: per_day= is no limit"),
        ("concurrent=1 concurrent=2", "is there twice"),
        ("a-secret", ":1: expected id: SHA-256"),
    ],
)
def test_wrong_limits_are_refused_by_line(tmp_path: Path, behind: str, message: str) -> None:
    """The message says which one, and never repeats what could be a key."""
    file = tmp_path / "keys"
    file.write_text(f"a: {DIGEST} {behind}\n")
    with pytest.raises(ConfigError) as caught:
        load_keys(KeysConfig(file=str(file)), {})
    assert message in str(caught.value)
    assert "a-secret" not in str(caught.value)

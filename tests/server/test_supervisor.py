"""The restart policy, and what is said of a process that ended."""

from __future__ import annotations

import signal

from specproxy.server.child import OutputReader, describe_exit
from specproxy.server.supervisor import MAX_BARREN_LIVES, RestartPolicy, first_failure


def test_a_life_that_produced_tokens_is_followed_at_once() -> None:
    """Clients wait for their streams to go on."""
    policy = RestartPolicy()
    assert [policy.died(fruitful=True) for _ in range(20)] == [0.0] * 20


def test_barren_lives_wait_ever_longer_and_then_it_is_given_up() -> None:
    """A crash loop ends after a bounded number of starts."""
    policy = RestartPolicy()
    delays = [policy.died(fruitful=False) for _ in range(MAX_BARREN_LIVES)]
    assert delays == [0.5, 1.0, 2.0, None]


def test_a_good_life_forgives_the_barren_ones_before_it() -> None:
    """Only lives in a row make a crash loop."""
    policy = RestartPolicy()
    policy.died(fruitful=False)
    policy.died(fruitful=False)
    policy.died(fruitful=True)
    assert policy.died(fruitful=False) == 0.5


def test_exits_are_described_in_words() -> None:
    """A signal by its name, an exit by its code."""
    assert describe_exit(-signal.SIGKILL) == "signal SIGKILL"
    assert describe_exit(3) == "exit code 3"


def test_a_first_failure_is_the_engines_own_message_or_its_last_lines() -> None:
    """Whatever the engine could still say comes first."""
    reader = OutputReader(lambda line: None)
    assert first_failure("no such path: /x", 1, reader) == "no such path: /x"
    reader.tail.append("Killed")
    message = first_failure("", -9, reader)
    assert "signal SIGKILL" in message
    assert "Killed" in message

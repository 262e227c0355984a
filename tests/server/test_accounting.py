"""Accounts: one record per request, and the log line made of it."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from specproxy.server.accounting import Account, log_fields
from specproxy.server.metrics import Metrics
from specproxy.vocabulary import Decision, DraftCounts, SequenceStats


def test_a_log_line_has_no_empty_fields_and_a_short_revision() -> None:
    """One line of a log is for reading."""
    account = Account(Metrics(), "req-1", "/v1/chat/completions")
    account.decided(Decision("chat", "a" * 64), model="house", seed=1, stream=False, prompt_tokens=3)
    account.tokens(0, 2)
    with capture_logs() as logs:
        account.close()
    assert logs[0]["event"] == "request"
    fields = log_fields(account.record)
    assert fields["revision"] == "a" * 12
    assert fields["status"] == 200
    assert fields["completion_tokens"] == 2
    assert "error" not in fields
    assert "drafts" not in fields


def test_counts_of_several_sequences_are_summed_by_drafter() -> None:
    """n = 2 is one record."""
    account = Account(Metrics(), "r", "/v1/completions")
    first = SequenceStats(steps=2, drafts=[DraftCounts("ngram", 1, 2, 1, [1, 1], [1])])
    second = SequenceStats(steps=3, drafts=[DraftCounts("ngram", 1, 1, 1, [1], [1]), DraftCounts("draft", 1, 4, 0)])
    account.add_stats([first, second])
    record = account.record
    assert (record.steps, record.drafted, record.accepted) == (5, 7, 2)
    assert record.drafts[0] == DraftCounts("ngram", 2, 3, 2, [2, 1], [2])


@pytest.mark.parametrize("asked", [True, False])
def test_bodies_are_logged_only_where_the_configuration_asks_for_it(asked: bool) -> None:
    """log.bodies is off unless set: prompts are not for logs."""
    account = Account(Metrics(), "r", "/v1/completions", log_bodies=asked)
    with capture_logs() as logs:
        account.body("in", b"a secret")
    assert bool(logs) is asked

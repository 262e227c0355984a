"""From a parsed request to submissions."""

from __future__ import annotations

from typing import Any

from specproxy.server.api import draw_seed
from specproxy.vocabulary import MAX_SEED, Decision

DECISION = Decision("route", "rev")


def test_one_submission_per_choice(completion: Any) -> None:
    """Prompt by prompt, n each; choices count from 0 within a prompt and ids are those of the answer's choices."""
    request = completion(prompt=[[1], [2, 3]], n=2, max_tokens=5, temperature=0)
    made = request.submissions(DECISION, 7, salt="key", id_prefix="r")
    assert [(each.id, each.prompt, each.choice) for each in made] == [
        ("r-0", [1], 0),
        ("r-1", [1], 1),
        ("r-2", [2, 3], 0),
        ("r-3", [2, 3], 1),
    ]
    assert {(each.seed, each.salt, each.decision, each.params.max_tokens) for each in made} == {(7, "key", DECISION, 5)}


def test_default_length_is_bounded_only_where_open(chat: Any) -> None:
    """A route's own default applies where the client named no length, and never to one it named."""
    open_ended = chat().submissions(DECISION, 0, salt="", id_prefix="r", default_max_tokens=9)
    asked = chat(max_tokens=50).submissions(DECISION, 0, salt="", id_prefix="r", default_max_tokens=9)
    assert (open_ended[0].params.max_tokens, asked[0].params.max_tokens) == (9, 50)


def test_cache_salt_narrows_the_tenant(chat: Any) -> None:
    """The client's salt is added to the tenant's, so it can only separate further."""
    salts = {
        chat(cache_salt=salt).submissions(DECISION, 0, salt=key, id_prefix="r")[0].salt
        for key in ("a", "b")
        for salt in ("", "x")
    }
    assert len(salts) == 4


def test_prediction_travels(chat: Any) -> None:
    """Every choice gets the prediction's tokens."""
    request = chat(prediction={"type": "content", "content": "x = 1"}, n=2)
    assert [s.prediction for s in request.submissions(DECISION, 0, salt="", id_prefix="r")] == [request.prediction] * 2


def test_drawn_seeds() -> None:
    """They are below the bound and differ."""
    seeds = {draw_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < MAX_SEED for seed in seeds)

"""``specproxy bench`` against real servers with the house model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from specproxy.bench.records import bundled
from specproxy.cli.main import main

SMALL = ("--limit", "1", "--max-tokens", "24", "--json")


def arm(report: dict[str, Any], category: str, name: str) -> dict[str, Any]:
    """One arm of one category of the report."""
    arms = next(entry["arms"] for entry in report["categories"] if entry["category"] == category)
    found: dict[str, Any] = next(entry for entry in arms if entry["arm"] == name)
    return found


def test_a_running_server_is_measured(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a URL every arm answers, the texts are the same, and drafts were accepted."""
    arguments = ["bench", "--url", server.base_url, "--categories", "edit,json", "--arms", "policy,ngram;k=8", *SMALL]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    for category in ("edit", "json"):
        drafted = arm(report, category, "ngram;k=8")
        assert (drafted["failed"], drafted["compared"], drafted["identical"]) == (0, 1, 1)
        assert drafted["ttft_p50_ms"] > 0
    assert arm(report, "edit", "off")["accepted_length"] == 1
    assert arm(report, "edit", "ngram;k=8")["accepted_length"] > 1
    assert report["server"]["given"]["exactness"].startswith("bitwise")


def test_an_arm_that_the_server_refuses_fails_the_run(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A foreign server's own limits hold: what it refuses is reported with its words, and the exit code says so."""
    arguments = ["bench", "--url", server.base_url, "--categories", "json", "--arms", "nosuch", *SMALL]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert arm(json.loads(captured.out), "json", "nosuch")["failed"] == 1
    assert "nosuch" in captured.err


def test_no_server_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    """A URL at which nobody answers ends with one line and exit code 1."""
    assert main(["bench", "--url", "http://127.0.0.1:9/v1"]) == 1
    assert capsys.readouterr().err.startswith("specproxy: no server answers at http://127.0.0.1:9/v1")


@pytest.mark.parametrize("flag", ["--peers", "--overhead", "--steps", "--batch=1", "--identity=1"])
def test_flags_that_need_the_model_refuse_a_url(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is silently measured elsewhere than asked for."""
    assert main(["bench", "--url", "http://127.0.0.1:9/v1", flag]) == 1
    assert "leave --url out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "4", "--concurrency", "8"], "--batch says itself how many prompts run at a time"),
        (["--context", "900"], "--context is that of --steps"),
        (["mine.jsonl", "--steps"], "--steps answers no prompts; leave mine.jsonl out"),
    ],
)
def test_what_a_study_does_not_read_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that would change nothing is one message."""
    assert main(["bench", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_peers_are_batch_one(capsys: pytest.CaptureFixture[str]) -> None:
    """transformers' generate has no concurrency to be compared at."""
    assert main(["bench", "--peers", "--concurrency", "8"]) == 1
    assert "one prompt at a time" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_own_servers_and_peers(run_bench: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    """It starts a bitwise and a numeric server, reaches drafters on a route that is off, and runs transformers."""
    code, report, shown = run_bench(
        str(bundled()), "--categories", "creative", "--arms", "auto,ngram;k=4", "--peers", *SMALL
    )
    assert code == 0, shown
    names = [entry["arm"] for entry in report["categories"][0]["arms"]]
    assert names == ["off", "off-numeric", "auto", "ngram;k=4", "hf", "hf-assistant", "hf-lookup"]
    assert {entry["failed"] for entry in report["categories"][0]["arms"]} == {0}
    for name in ("auto", "ngram;k=4"):
        assert arm(report, "creative", name)["identical"] == 1
    assert arm(report, "creative", "ngram;k=4")["acceptance"] is not None
    assert arm(report, "creative", "hf")["tokens"] == arm(report, "creative", "hf-lookup")["tokens"]
    assert report["plan"]["greedy"] is True
    assert "numeric server" in shown


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_grown_target_is_measured_with_all_that_drafts_for_it(
    run_bench: Callable[..., tuple[int, dict[str, Any], str]],
) -> None:
    """Target, heads and draft model are grown alike: each still guesses, nothing changes a text, and it is labelled."""
    arms = "eagle3;k=3,medusa;k=3,mtp;k=3,draft_model;k=3"
    code, report, shown = run_bench(
        "--scale", "tiny-8b", "--all-drafters", "--arms", arms, "--categories", "json,edit", "--no-numeric", *SMALL
    )
    assert code == 0, shown
    assert "cost-scaled: house in the shape of tiny-8b" in shown
    for name in arms.split(","):
        found = [arm(report, category, name) for category in ("json", "edit")]
        assert [entry["identical"] for entry in found] == [1, 1]
        assert max(entry["acceptance"] for entry in found) > 0.15, name


def test_openvino_does_not_run_grown_targets(capsys: pytest.CaptureFixture[str]) -> None:
    """Two models of different cost are not put beside each other."""
    assert main(["bench", "--scale", "llama-3-8b", "--openvino"]) == 1
    assert "--scale grows our own target" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_overhead(run_bench: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    """The engine's loop alone answers the same prompts as the server does, one at a time and several."""
    code, report, shown = run_bench("--overhead", "--categories", "edit,json", "--concurrency", "2", *SMALL)
    assert code == 0, shown
    assert report["concurrency"] == 2
    assert report["alone_tokens_per_s"] > 0
    assert report["http_many_tokens_per_s"] > 0
    assert report["speed"]["units"] == 2
    assert report["ttft_alone_ms"] > 0
    assert "TTFT, median" in shown

"""specproxy policy on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from specproxy.cli.main import main

if TYPE_CHECKING:
    from tests.policy.conftest import WriteSet

SHIPPED = str(Path(__file__).parent.parent.parent / "policies")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables do not wrap."""
    monkeypatch.setenv("COLUMNS", "200")


def request_file(folder: Path, **body: object) -> str:
    """A file with a request."""
    file = folder / "request.json"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]} | body))
    return str(file)


def test_check_of_a_good_set(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, and the routes."""
    assert main(["policy", "check", SHIPPED]) == 0
    out = capsys.readouterr().out
    assert "structured" in out
    assert "0 errors, 0 warnings, 0 notes" in out


def test_check_prints_notes(tmp_path: Path, write_set: WriteSet, capsys: pytest.CaptureFixture[str]) -> None:
    """About upstreams; they are no reason for another exit code."""
    config = tmp_path / "specproxy.yaml"
    config.write_text("upstreams: {vllm-a: {url: 'http://127.0.0.1:9/v1'}}\n")
    folder = write_set("routes: [{name: q, backend: vllm-a}]\n")
    assert main(["policy", "check", str(folder), "--config", str(config)]) == 0
    assert "note: " in capsys.readouterr().out


def test_check_of_a_broken_set(write_set: WriteSet, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and each error on a line that editors can jump to."""
    folder = write_set("routes:\n  - name: a\n    speculat: [bold]\n")
    assert main(["policy", "check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert f'error: {folder}/00.yaml:3: routes[0].speculat: unknown key "speculat"; did you mean "speculate"?' in out
    assert main(["policy", "check", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["set"], found["errors"][0]["line"], found["errors"][0]["key"]) == (None, 3, "routes[0].speculat")


def test_check_knows_the_start_configuration(
    write_set: WriteSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A drafter is declared by --drafter or --config; without either it is unknown."""
    folder = str(write_set("routes: [{name: a, speculate: {drafters: mine}}]\n"))
    assert main(["policy", "check", folder]) == 1
    assert (
        '"mine" is no declared drafter; declared: grammar, prediction, suffix, ngram, draft_model'
        in capsys.readouterr().out
    )
    assert main(["policy", "check", folder, "--drafter", "mine=ngram"]) == 0
    config = tmp_path / "specproxy.yaml"
    config.write_text("drafters: {mine: {type: ngram}}\n")
    assert main(["policy", "check", folder, "--config", str(config), "--json"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith('{"errors":[]')


def test_explain_for_people_and_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Facts, routes, decision, origins, what would change it."""
    file = request_file(tmp_path, temperature=1.0)
    assert main(["policy", "explain", SHIPPED, "--request", file]) == 0
    out = capsys.readouterr().out
    assert "route creative, by the rule: match" in out
    assert "80-creative.yaml" in out
    assert "towards route structured" in out
    assert main(["policy", "explain", SHIPPED, "--request", file, "--json"]) == 0
    explanation = json.loads(capsys.readouterr().out)
    assert explanation["decision"]["reason"] == "speculation is off on route creative"


def test_explain_takes_what_surrounds_a_body(
    write_set: WriteSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Path, headers, key, prompt length and load, as flags."""
    folder = str(
        write_set(
            "routes: [{name: a, match: {path: /p, header: {x: y}, api_key: k, prompt_tokens: 5, load: 2}}, {name: z}]\n"
        )
    )
    flags = ["--path", "/p", "--header", "X: y", "--api-key", "k", "--prompt-tokens", "5", "--load", "2", "--json"]
    assert main(["policy", "explain", folder, "--request", request_file(tmp_path), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["route"] == "a"


def test_a_refused_request_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the status and message that the client would get."""
    assert main(["policy", "explain", SHIPPED, "--request", request_file(tmp_path, max_tokens=10**6)]) == 0
    assert "refused with 400: max_tokens is 1000000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[1]", "expected a request body"), ('{"body": 1}', "Expected `object`")],
)
def test_request_files_must_hold_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    """One message on stderr, exit code 1."""
    file = tmp_path / "r.json"
    file.write_text(content)
    assert main(["policy", "explain", SHIPPED, "--request", str(file)]) == 1
    assert message in capsys.readouterr().err


def test_policy_tests_pass_or_fail(write_set: WriteSet, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 or 1; a failure comes with its explanation; a folder without tests is an error."""
    assert main(["policy", "test", SHIPPED]) == 0
    assert " passed, 0 failed" in capsys.readouterr().out
    folder = write_set("routes: [{name: a}]\n")
    assert main(["policy", "test", str(folder)]) == 1
    assert "has no tests" in capsys.readouterr().err
    (folder / "tests").mkdir()
    (folder / "tests" / "t.yaml").write_text("tests: [{name: c, request: {n: 1}, expect: {route: b}}]\n")
    assert main(["policy", "test", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "  - route: b\n  + route: a\n  route a took it, by the rule: any request\n" in out
    assert "routes, in order" in out
    assert main(["policy", "test", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["mismatches"] == [{"field": "route", "expected": "b", "got": "a"}]


def test_policy_tests_write_junit_for_ci(
    write_set: WriteSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a case fails; a file that cannot be written is one message."""
    folder, file = write_set("routes: [{name: a}]\n"), tmp_path / "results.xml"
    (folder / "tests").mkdir()
    (folder / "tests" / "t.yaml").write_text("tests: [{name: c, request: {n: 1}, expect: {route: b}}]\n")
    assert main(["policy", "test", str(folder), "--junit", str(file)]) == 1
    assert '<testsuites tests="1" failures="1" errors="0">' in file.read_text()
    assert main(["policy", "test", str(folder), "--junit", str(tmp_path / "none" / "r.xml")]) == 1
    assert "r.xml: cannot be written: No such file or directory" in capsys.readouterr().err


def test_plan_without_a_server(write_set: WriteSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The active set is that of the start configuration; for people and for machines."""
    active = write_set("routes: [{name: a, match: {n: 2}}, {name: z}]\n")
    candidate = tmp_path / "candidate"
    candidate.mkdir()
    (candidate / "a.yaml").write_text("routes: [{name: a, match: {n: {ge: 1}}}, {name: z}]\n")
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"messages": []}\n{"messages": [], "n": 2}\n')
    command = ["policy", "plan", str(candidate), "--requests", str(requests), "--policies", str(active)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "1 requests would go from route z to a" in out
    assert "1 of 2 requests would be treated otherwise; routes touched: a, z" in out
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(change["request"], change["fields"]) for change in found["changes"]] == [(1, ["route"])]


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """For editors, on standard output."""
    assert main(["policy", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "specproxy policy file"

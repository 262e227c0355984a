"""Loading a set, and deciding."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specproxy.errors import InvalidRequest, PolicyError
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.facts import Facts
from specproxy.policy.policy import PolicySet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.policy.conftest import FindAll, LoadSet, MakeFacts, WriteSet

REST = "routes: [{name: rest}]\n"


def test_the_first_route_that_matches_decides(load_set: LoadSet, facts_of: MakeFacts) -> None:
    """Files in name order, routes in the order written."""
    policies = load_set(
        "routes: [{name: b, match: {n: 2}, speculate: {k: 2}}, {name: c, match: {n: {ge: 2}}}]\n",
        "defaults: {speculate: {drafters: ngram}}\nroutes: [{name: rest}]\n",
    )
    assert [policies.decide(facts_of(n=n)).decision.route for n in (1, 2, 3)] == ["rest", "b", "c"]
    decision = policies.decide(facts_of(n=2)).decision
    assert (decision.rule, decision.drafters, decision.k_min, decision.k_max) == ("n", ("ngram",), 2, 2)
    assert (decision.adaptive, decision.auto, decision.reason, decision.arm) == (False, False, None, "active")
    assert policies.decide(facts_of(n=1)).decision.rule == "any request"


def test_auto_lists_what_is_loaded_cheapest_first(load_set: LoadSet, facts_of: MakeFacts) -> None:
    """The controller chooses among them."""
    decision = load_set(REST).decide(facts_of()).decision
    assert (decision.auto, decision.drafters) == (True, ("prediction", "ngram", "draft_model"))
    assert (decision.k_min, decision.k_max, decision.adaptive) == (0, None, True)


def test_a_list_keeps_its_order(load_set: LoadSet, facts_of: MakeFacts) -> None:
    """The first that has a guess wins."""
    text = "routes: [{name: r, speculate: {drafters: [draft_model, ngram]}, exactness: numeric, backend: [engine]}]\n"
    decision = load_set(text).decide(facts_of()).decision
    assert (decision.auto, decision.drafters) == (False, ("draft_model", "ngram"))
    assert (decision.exactness, decision.backends) == ("numeric", ("engine",))


@pytest.mark.parametrize("off", ["speculate: off", "speculate: false", "speculate: {k: 0}", "speculate: {k: {max: 0}}"])
def test_off_is_plain_decoding_with_a_reason(load_set: LoadSet, facts_of: MakeFacts, off: str) -> None:
    """No drafters, K = 0, whatever the spelling, and the same revision."""
    policies = load_set(f"routes: [{{name: r, {off}}}]\n")
    decision = policies.decide(facts_of()).decision
    assert (decision.drafters, decision.auto, decision.k_min, decision.k_max) == ((), False, 0, 0)
    assert decision.reason == "speculation is off on route r"
    assert decision.revision == load_set("routes: [{name: r, speculate: off}]\n").routes[0].decision.revision


def test_without_drafters_auto_is_plain(write_set: WriteSet, facts_of: MakeFacts) -> None:
    """And says why."""
    decision = PolicySet.load(write_set(REST), Catalogue()).decide(facts_of()).decision
    assert (decision.drafters, decision.k_max, decision.reason) == ((), 0, "no drafter is loaded")


def test_limits_refuse_and_never_clamp(load_set: LoadSet, facts_of: MakeFacts) -> None:
    """Exactly the limit passes; one more is a 400 that names the limit and the field."""
    policies = load_set(
        "routes: [{name: r, limits: {max_tokens: 10, prompt_tokens: 20, tool_calls: 0, timeout_s: 5}}]\n"
    )
    verdict = policies.decide(facts_of(max_tokens=10, prompt_tokens=20))
    assert msgspec.structs.astuple(verdict.limits) == (10, 20, 0, 5.0)
    with pytest.raises(InvalidRequest, match="max_tokens is 11; route r of this server allows 10") as caught:
        policies.decide(facts_of(max_completion_tokens=11))
    info = caught.value.info()
    assert (info.status, info.param, info.code) == (400, "max_tokens", "route_limit_exceeded")
    with pytest.raises(InvalidRequest, match="length in tokens is 21"):
        policies.decide(facts_of(prompt_tokens=21))
    calls = [{"role": "assistant", "tool_calls": [{}]}, {"role": "user", "content": "x"}]
    with pytest.raises(InvalidRequest, match="tool calls so far is 1"):
        policies.decide(facts_of(messages=calls))


def test_limits_of_null_and_unknown_values_refuse_nothing(load_set: LoadSet, facts_of: MakeFacts) -> None:
    """What is not known cannot be beyond a limit."""
    policies = load_set("routes: [{name: r, limits: {max_tokens: null, prompt_tokens: 5}}]\n")
    assert policies.decide(facts_of(max_tokens=10**9)).limits.max_tokens is None


def test_a_route_says_whether_its_answers_may_be_kept(load_set: LoadSet, facts_of: MakeFacts) -> None:
    """By itself, whatever a request overrides."""
    policies = load_set(
        "defaults: {override: true}\n"
        "routes: [{name: a, match: {n: 2}, capture: on}, {name: b, match: {n: 3}}, {name: c}]"
    )
    off = {"x-specproxy-speculate": "off"}
    assert policies.decide(facts_of(n=2)).capture
    assert policies.decide(facts_of(n=2, headers=off)).capture
    assert not policies.decide(facts_of(n=3)).capture
    assert not policies.decide(facts_of(headers=off)).capture


def test_revisions_follow_the_effective_route(load_set: LoadSet, catalogue: Catalogue, write_set: WriteSet) -> None:
    """Inherited or written out is the same; settings, match, name and drafters' fingerprints are not."""
    base = load_set("routes: [{name: r, match: {n: 1}, limits: {max_tokens: 9}}, {name: z}]\n")
    revision = base.routes[0].decision.revision
    same = load_set(
        "defaults: {limits: {max_tokens: 9}}\nroutes: [{match: {n: 1}, name: r, override: false}, {name: z}]\n"
    )
    assert same.routes[0].decision.revision == revision
    assert len(revision) == 64
    for text in (
        "routes: [{name: r, match: {n: 1}, limits: {max_tokens: 8}}, {name: z}]\n",
        "routes: [{name: r, match: {n: 2}, limits: {max_tokens: 9}}, {name: z}]\n",
        "routes: [{name: q, match: {n: 1}, limits: {max_tokens: 9}}, {name: z}]\n",
    ):
        assert load_set(text).routes[0].decision.revision != revision
    folder = write_set("routes: [{name: r, match: {n: 1}, limits: {max_tokens: 9}}, {name: z}]\n")
    newer = msgspec.structs.replace(catalogue.drafters[1], fingerprint="n2")
    changed = msgspec.structs.replace(catalogue, drafters=(catalogue.drafters[0], newer, catalogue.drafters[2]))
    assert PolicySet.load(folder, changed).routes[0].decision.revision != revision


def test_the_hash_of_a_set_knows_the_order(load_set: LoadSet) -> None:
    """Moving a route changes whose traffic it takes."""
    one = load_set("routes: [{name: a, match: {n: 1}}, {name: b, match: {turns: 1}}, {name: z}]\n")
    other = load_set("routes: [{name: b, match: {turns: 1}}, {name: a, match: {n: 1}}, {name: z}]\n")
    assert {r.decision.revision for r in one.routes} == {r.decision.revision for r in other.routes}
    assert one.hash != other.hash


def test_errors_have_file_line_key_value_and_expectation(find_all: FindAll) -> None:
    """All faults of all files at once, in their order."""
    findings = find_all(
        "version: 2\nroutes:\n  - name: a b\n    speculat: off\n",
        "routes:\n  - name: x\n    speculate:\n      drafters: [ngrm, ngram]\n      k: {min: 5, max: 3}\n"
        "    backend: vllm-b\n    match: {prompt: '/(/', temperature: {}}\n",
    )
    assert findings.errors == [
        "00.yaml:1: version: expected 1, got 2",
        '00.yaml:3: routes[0].name: expected text of the form ^[A-Za-z0-9][A-Za-z0-9_.-]*$, got "a b"',
        '00.yaml:4: routes[0].speculat: unknown key "speculat"; did you mean "speculate"?',
        '10.yaml:4: speculate.drafters: "ngrm" is no declared drafter; did you mean "ngram"?',
        findings.errors[4],
        '10.yaml:6: backend: "vllm-b" is no declared upstream; did you mean "vllm-a"?',
        findings.errors[6],
        "10.yaml:7: routes[0].match.temperature: is empty; an empty condition says nothing, leave it out",
    ]
    assert findings.errors[4].startswith("10.yaml:5: speculate.k: min 5 from route (")
    assert 'expected a regular expression between slashes, got "/(/": ' in findings.errors[6]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["routes: [{name: a, match: {n: 1}}]\n"], "00.yaml: routes: no route takes every request"),
        (["defaults: {}\n" + REST, "defaults: {}\n"], "10.yaml:1: defaults: exactly one file may hold defaults"),
        ([REST, "routes: [{name: rest}]\n"], '10.yaml:1: routes[0].name: the name "rest" is taken'),
        (["routes: [{match: {n: 1}}]\n"], '00.yaml:1: routes[0]: "name" is missing'),
        (["- a\n"], "00.yaml:1: expected a mapping with version, defaults, routes"),
        (["routes: [{name: a}\n"], "is not valid YAML"),
        (["routes: [{name: a, name: b}]\n"], 'duplicate key "name"'),
        (["routes: [{name: a, speculate: true}]\n"], 'expected "off", false or a mapping'),
        (["routes: [{name: a, speculate: {drafters: []}}]\n"], "expected text or a list"),
        (["routes: [{name: a, speculate: {drafters: [auto, ngram]}}]\n"], "auto means every loaded drafter"),
        (["routes: [{name: a, speculate: {drafters: [ngram, ngram]}}]\n"], '"ngram" stands there twice'),
        (["routes: [{name: a, speculate: {k: 64}}]\n"], "a whole number from 0 to 63"),
        (["routes: [{name: a, gate: {mismatch: {p0: 0.1}}}]\n"], "expected p0 below p1, got 0.1 and 0.01"),
        (["routes: [{name: a, gate: {canary: [0.5, 0.1]}}]\n"], "expected rising shares"),
        (["routes: [{name: a, match: {metadata: {tier: 1}}}]\n"], "got 1; write it in quotes"),
        (["routes: [{name: a, match: {any: []}}]\n"], "expected a list"),
        (["routes: [{name: a, match: {any: [{}]}}]\n"], "any[0]: is empty"),
        (["routes: [{name: a, match: {temprature: 1}}]\n"], 'did you mean "temperature"?'),
        (["routes: [{name: a, match: {temperature: {get: 1}}}]\n"], 'unknown key "get"; did you mean'),
        (["routes: [{name: a, match: {temperature: hot}}]\n"], '"absent" or "present"'),
        (["<<: {}\n" + REST], 'unknown key "<<"'),
    ],
)
def test_what_is_wrong_is_told(find_all: FindAll, files: list[str], message: str) -> None:
    """Each kind of fault of a set, with its file and line."""
    assert any(message in error for error in find_all(*files).errors)


def test_load_raises_with_every_problem(write_set: WriteSet, catalogue: Catalogue, tmp_path: Path) -> None:
    """One line per fault, and a folder that is missing or empty is a fault."""
    with pytest.raises(PolicyError) as caught:
        PolicySet.load(write_set("routes: [{name: a, speculat: 1}, {nam: 2}]\n"), catalogue)
    assert len(caught.value.problems) == 3
    with pytest.raises(PolicyError, match="is no directory"):
        PolicySet.load(tmp_path / "gone", catalogue)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PolicyError, match=r"has no \*.yaml file"):
        PolicySet.load(tmp_path / "empty", catalogue)


def test_only_yaml_files_of_the_folder_itself_count(find_all: FindAll, write_set: WriteSet) -> None:
    """Hidden files and subfolders are no part of a set; a .yml is not read, which a warning tells."""
    folder = write_set(REST)
    (folder / "tests").mkdir()
    (folder / "tests" / "x.yaml").write_text("nonsense")
    (folder / ".hidden.yaml").write_text("nonsense")
    (folder / "README.md").write_text("nonsense")
    (folder / "more.yml").write_text("nonsense")
    findings = find_all()
    assert findings.errors == []
    assert findings.warnings == ["more.yml: is not read; policy files end in .yaml"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bounds=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=6),
    n=st.integers(0, 7),
    limit=st.integers(1, 5),
    asked=st.integers(1, 6),
)
def test_first_match_and_limits_for_any_set(
    load_set: LoadSet, bounds: list[tuple[int, int]], n: int, limit: int, asked: int
) -> None:
    """The route is the first whose bounds hold n; a request is refused exactly when it asks for too much."""
    routes = [f"{{name: r{i}, match: {{n: {{ge: {low}, le: {high}}}}}}}" for i, (low, high) in enumerate(bounds)]
    text = f"defaults: {{limits: {{max_tokens: {limit}}}}}\nroutes: [{', '.join([*routes, '{name: rest}'])}]\n"
    policies = load_set(text)
    expected = next((f"r{i}" for i, (low, high) in enumerate(bounds) if low <= n <= high), "rest")
    facts = Facts(path="/", n=n, max_tokens=asked)
    if asked > limit:
        with pytest.raises(InvalidRequest):
            policies.decide(facts)
    else:
        assert policies.decide(facts).decision.route == expected


def test_deciding_is_fast(load_set: LoadSet, facts_of: MakeFacts) -> None:
    """Far below a millisecond for dozens of routes: the best of many runs, since the machine may be busy."""
    routes = [
        f"{{name: r{i}, match: {{metadata: {{category: [a{i}, b{i}]}}, temperature: {{ge: 2}}}}}}" for i in range(40)
    ]
    policies = load_set(f"routes: [{', '.join(routes)}, {{name: rest}}]\n")
    facts = facts_of(metadata={"category": "a39"}, temperature=0.5)
    best = 1.0
    for _ in range(200):
        start = time.perf_counter()
        policies.decide(facts)
        best = min(best, time.perf_counter() - start)
    assert best < 500e-6


def test_a_set_says_whether_it_asks_for_the_prompts_length(write_set: WriteSet, catalogue: Catalogue) -> None:
    """In a condition, however deep, or in a limit: only then must a prompt be tokenised to decide."""
    asks = [
        "match: {prompt_tokens: {gt: 5}}",
        "match: {any: [{model: m}, {not: {prompt_tokens: {lt: 5}}}]}",
        "limits: {prompt_tokens: 9}",
    ]
    for own in asks:
        text = f"routes: [{{name: q, {own}}}, {{name: z}}]\n"
        assert PolicySet.load(write_set(text), catalogue).counts_tokens
    assert not PolicySet.load(
        write_set("routes: [{name: q, match: {metadata: {prompt_tokens: a}}}, {name: z}]\n"), catalogue
    ).counts_tokens


def test_a_route_that_the_engine_never_serves_drafts_nothing(write_set: WriteSet, catalogue: Catalogue) -> None:
    """It says why, and a change of a drafter is no change of it."""
    policies = PolicySet.load(write_set("routes: [{name: q, backend: vllm-a}]\n"), catalogue)
    decision = policies.routes[0].decision
    assert (decision.backends, decision.drafters) == (("vllm-a",), ())
    assert decision.reason == "route q goes to upstreams, which speculate as they are set up"
    without = msgspec.structs.replace(catalogue, drafters=())
    assert PolicySet.load(policies.directory, without).routes[0].decision.revision == decision.revision

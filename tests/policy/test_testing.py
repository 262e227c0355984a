"""Policy tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from specproxy.errors import PolicyError
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.policy import PolicySet
from specproxy.policy.testing import Outcome, run_tests

if TYPE_CHECKING:
    from tests.policy.conftest import WriteSet

SET = """
defaults: {override: true}
routes:
  - {name: two, match: {n: 2}, speculate: {drafters: [ngram, draft_model], k: {min: 2, max: 6}, tree: {width: 2}}}
  - {name: hot, match: {temperature: {ge: 0.9}}, speculate: off, capture: on}
  - {name: rest}
"""


def run(write_set: WriteSet, catalogue: Catalogue, text: str) -> list[Outcome]:
    """Outcomes of the cases in ``text``."""
    folder = write_set(SET)
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "tests" / "t.yaml").write_text(text)
    return run_tests(folder, PolicySet.load(folder, catalogue))


def case(request: str, expect: str) -> str:
    """A file with one case."""
    return f"tests:\n  - name: c\n    request: {request}\n    expect: {expect}\n"


@pytest.mark.parametrize(
    ("request_", "expect"),
    [
        ("{n: 2}", "{route: two, rule: n, drafters: [ngram, draft_model], k: {min: 2, max: 6}}"),
        ("{n: 2}", "{tree: {width: 2, nodes: 16}, exactness: bitwise, backend: engine}"),
        ("{n: 2}", "{limits: {max_tokens: 4096, prompt_tokens: null, timeout_s: 600}}"),
        ("{temperature: 1}", "{drafters: off, k: off}"),
        ("{temperature: 1}", "{drafters: false, k: 0, reason: speculation is off on route hot}"),
        ("{temperature: 1}", "{capture: on}"),
        ("{n: 1}", "{capture: off}"),
        ("{n: 1}", "{drafters: auto, k: auto, reason: none}"),
        ("{body: {n: 1}, headers: {x-specproxy-speculate: ngram;k=3}}", "{drafters: ngram, k: 3}"),
        ("{body: {max_tokens: 9999}}", "{error: allows 4096 at most}"),
        ("{body: {prompt: x}, path: /v1/completions}", "{route: rest}"),
    ],
)
def test_true_expectations_pass(write_set: WriteSet, catalogue: Catalogue, request_: str, expect: str) -> None:
    """Every field that can be expected, in every form."""
    (outcome,) = run(write_set, catalogue, case(request_, expect))
    assert outcome.mismatches == []
    assert outcome.passed
    assert outcome.explanation is None


@pytest.mark.parametrize(
    ("request_", "expect", "mismatch"),
    [
        ("{n: 2}", "{route: rest}", ("route", "rest", "two")),
        ("{n: 2}", "{rule: any request}", ("rule", "any request", "n")),
        ("{n: 2}", "{drafters: ngram}", ("drafters", "ngram", "ngram, draft_model")),
        ("{n: 2}", "{drafters: auto}", ("drafters", "auto", "ngram, draft_model")),
        ("{n: 1}", "{drafters: off}", ("drafters", "off", "auto")),
        ("{n: 2}", "{k: 5}", ("k", "5", "2 to 6")),
        ("{n: 2}", "{tree: {width: 1}}", ("tree", "width 1, nodes 16", "width 2, nodes 16")),
        ("{n: 2}", "{exactness: numeric}", ("exactness", "numeric", "bitwise")),
        ("{n: 2}", "{backend: [engine, vllm-a]}", ("backend", "engine, vllm-a", "engine")),
        ("{n: 2}", "{limits: {max_tokens: null}}", ("limits.max_tokens", "None", "4096")),
        ("{n: 2}", "{capture: on}", ("capture", "on", "off")),
        ("{n: 2}", "{error: too long}", ("error", "too long", "an answer")),
    ],
)
def test_false_expectations_fail_with_the_explanation(
    write_set: WriteSet, catalogue: Catalogue, request_: str, expect: str, mismatch: tuple[str, str, str]
) -> None:
    """Field, expectation, and what came instead."""
    (outcome,) = run(write_set, catalogue, case(request_, expect))
    assert [(m.field, m.expected, m.got) for m in outcome.mismatches] == [mismatch]
    assert outcome.explanation is not None
    assert outcome.line == 2


def test_an_unexpected_refusal_fails(write_set: WriteSet, catalogue: Catalogue) -> None:
    """A case that expects an answer is not content with an error."""
    (outcome,) = run(write_set, catalogue, case("{max_tokens: 9999}", "{route: rest}"))
    assert [m.field for m in outcome.mismatches] == ["error"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (case("{n: 1}", "{rout: x}"), 't.yaml:4: tests[0].expect.rout: unknown key "rout"; did you mean "route"?'),
        (case("{n: 1}", "{limits: {tokens: 1}}"), 'unknown key "tokens"'),
        (case("[1]", "{}"), "t.yaml:3: tests[0].request: expected a mapping"),
        (case("{body: {}, heders: {}}", "{}"), "t.yaml:3: tests[0].request: request: "),
        ("tests: []\n", "expected a list"),
        ("", "expected a mapping with tests"),
        ("tests: [{name: a}]\n", '"request" is missing'),
        ("tests: [\n", "is not valid YAML"),
    ],
)
def test_wrong_test_files_are_errors_with_lines(
    write_set: WriteSet, catalogue: Catalogue, text: str, message: str
) -> None:
    """A mistyped expectation must not pass as none."""
    with pytest.raises(PolicyError) as caught:
        run(write_set, catalogue, text)
    assert message in str(caught.value)

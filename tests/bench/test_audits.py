"""What audits cost and what they find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from specproxy.bench.arms import ARM_HEADER, OFF, Arm, parse_arm
from specproxy.bench.audit_cost import AUDITED, PLAIN, Heard, arms_of, cost_of, verdict_counts
from specproxy.bench.audit_power import Power, Ties, reseeded
from specproxy.bench.audits import AuditStudy, costs_table, powers_table, ties_table
from specproxy.bench.client import Answer
from specproxy.bench.policies import CLONES, derive
from specproxy.bench.records import Record
from specproxy.bench.stats import pooled_share


def answer(total_s: float, ttft_s: float = 0.01, tokens: int = 10) -> Answer:
    """An answer of ten tokens."""
    return Answer(tokens=tokens, token_ids=list(range(tokens)), ttft_s=ttft_s, total_s=total_s)


def block(factor: float, wait_s: float = 0.0, tokens: int = 10) -> dict[str, Heard]:
    """Three prompts, whose answers take ``factor`` times as long where they are audited, and begin later."""
    records = [Record(f"p{i}", "chat", {}, i) for i in range(3)]
    plain = [answer(0.1 * (i + 1)) for i in range(3)]
    audited = [answer(0.1 * (i + 1) * factor, 0.01 + wait_s, tokens) for i in range(3)]
    return {PLAIN: Heard(records, plain, 0.6), AUDITED: Heard(records, audited, 0.6 * factor, in_time=2)}


def power(found: int, answers: int, struck: int) -> Power:
    """A fault that was looked for with two seeds."""
    return Power("a fault", 2, found, [answers // 2] * found, answers, struck, 40, 3.0, 1, 1.0)


def study(**parts: Any) -> AuditStudy:
    """A study of which only some is given."""
    return AuditStudy(**({"costs": [], "powers": [], "ties": [], "tolerance": None, "facts": {}} | parts))


def test_a_cost_is_paired_by_prompt() -> None:
    """Answers that take a quarter longer run at 0.8; what a prompt waits longer is the difference of its own."""
    cost = cost_of("half", 1, 2.0, [block(1.25, 0.002)] * 4, 0)
    assert cost.speed.mean == pytest.approx(0.8)
    assert cost.throughput.mean == pytest.approx(0.8)
    assert cost.ttft_added.median == pytest.approx(2.0)
    assert cost.ttft_p95 == pytest.approx((12.0, 10.0))
    assert (cost.speed.units, cost.answers, cost.in_time, cost.differing) == (3, 12, 8, 0)
    assert costs_table([cost]).rows[0][-1] == "0.97: missed"


def test_the_first_answers_of_a_closed_loop_do_not_count() -> None:
    """Nothing waited to be audited when they ran."""
    cost = cost_of("full", 2, 0.0, [block(1.0)], 2)
    assert (cost.speed.units, cost.answers) == (1, 3)
    assert costs_table([cost]).rows[0][-1] == "0.95: held"


def test_an_answer_that_audits_change_is_a_fault() -> None:
    """They only read."""
    cost = cost_of("full", 2, 0.0, [block(1.0, tokens=9)], 0)
    assert study(costs=[cost]).faults == ["full load: 3 answers differ"]


def test_verdicts_are_summed_over_routes() -> None:
    """What /metrics says, and nothing for what it does not."""
    text = (
        '# TYPE specproxy_audits_total counter\nspecproxy_audits_total{route="a",verdict="identical"} 3.0\n'
        'specproxy_audits_total{route="b",verdict="identical"} 4.0\n'
        'specproxy_audits_total{route="b",verdict="explained"} 1.0\nother_total{route="b",verdict="hard"} 1.0\n'
    )
    assert verdict_counts(text) == {"identical": 7, "explained": 1}
    assert verdict_counts("") == {}


@pytest.mark.parametrize("name", ["off", "policy", "ngram;k=4"])
def test_an_audited_arm_has_routes_of_its_own(name: str, tmp_path: Path) -> None:
    """The same speculation with and without; all answers of one are audited, none of the other's."""
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from" / "one.yaml").write_text("version: 1\nroutes: [{name: r, speculate: {k: 3}}]\n")
    plain, audited = arms_of(parse_arm(name))
    derive(tmp_path / "from", tmp_path / "to", [plain, audited])
    yaml = YAML(typ="safe", pure=True)
    routes = (yaml.load(tmp_path / "to" / CLONES).get("routes")) or []
    mine = [route for route in routes if route["match"]["header"][ARM_HEADER] == audited.name]
    assert [route["audit"] for route in mine] == [{"fraction": 1.0, "budget": 0.05}]
    others = [route for route in routes if route not in mine]
    assert all("audit" not in route for route in others)
    assert [route["speculate"] for route in mine] == [o["speculate"] for o in others] or name in ("off", "policy")
    asked = audited.headers(own_server=True)
    assert asked[ARM_HEADER] == audited.name
    assert (asked.get("x-specproxy-speculate") == OFF) == (name == "off")
    assert ARM_HEADER not in Arm(OFF, OFF).headers(own_server=True)


def test_a_fault_is_missed_only_where_it_was() -> None:
    """One that never struck says nothing of audits."""
    assert power(0, 8, 1).missed
    assert not power(0, 8, 0).missed
    assert not power(1, 8, 1).missed
    assert study(powers=[power(0, 8, 1), power(2, 8, 2)]).faults == ["a fault: not found in 8 answers"]
    row = powers_table([power(2, 8, 2)]).rows[0]
    assert row[1:5] == ["2/2 seeds", "4, 4", "4.0", "3.0"]


def test_a_hard_mismatch_without_a_fault_is_a_false_alarm() -> None:
    """Near-ties are not."""
    ties = Ties("the engine", 4, 100, 1, 2, 1.5, 0, pooled_share([[0.0] * 48 + [1.0] * 2, [0.0] * 50]))
    alarm = Ties("the engine", 4, 100, 1, 2, 1.5, 1, ties.share)
    assert study(ties=[ties]).faults == []
    assert study(ties=[ties, alarm]).faults == ["the engine: 1 hard mismatches without a fault"]
    assert ties_table([ties]).rows[0][2:6] == ["1 (25%)", "100", "2", "2.00% [0.00%, 4.00%]"]


def test_each_pass_has_seeds_of_its_own() -> None:
    """The same in every run."""
    record = Record("p", "chat", {"temperature": 0.0}, 5)
    first, again, other = (reseeded(record, salt) for salt in ("0#0", "0#0", "0#1"))
    assert first == again
    assert first.seed not in (record.seed, other.seed)
    assert first.body["temperature"] == 0.8


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_measures_costs_and_finds_faults(
    run_bench: Callable[..., tuple[int, dict[str, Any], str]],
) -> None:
    """The house model: every audit ends, answers are the same with and without, a wrong product and a wrong mask are
    found, and nothing is where there is no fault."""
    small = ("--limit", "1", "--categories", "edit,chat", "--max-tokens", "8", "--concurrency", "1", "--json")
    code, report, shown = run_bench("--audits", "--answers", "8", *small)
    assert [cost["load"] for cost in report["costs"]] == ["half", "full"]
    for cost in report["costs"]:
        assert cost["differing"] == 0
        assert cost["speed"]["units"] == 2
        assert 0 <= cost["in_time"] <= cost["answers"]
    assert len(report["powers"]) == 5
    kernel, mask = report["powers"][2], report["powers"][4]
    assert (kernel["found"], mask["found"]) == (1, 1)
    assert kernel["struck"] > 0
    assert mask["struck"] > 0
    assert [ties["hard"] for ties in report["ties"]] == [0, 0, 0]
    plain, drafted, _ = report["ties"]
    assert (plain["tokens"], plain["explained"]) == (drafted["tokens"], drafted["explained"])
    assert "every answer audited against none" in shown
    assert code == int(any(power["struck"] and not power["found"] for power in report["powers"]))

"""The table of the field."""

from __future__ import annotations

import io
from collections.abc import Callable

import msgspec
import pytest
from rich.console import Console

from specproxy.bench.arms import parse_arms
from specproxy.bench.field import (
    FIELD_ARMS,
    Grid,
    drafters_of,
    drop_missing,
    field_arms,
    field_config,
    methods_by_category,
    methods_overall,
)
from specproxy.bench.report import markdown
from specproxy.bench.runner import Measured
from specproxy.bench.summary import add_memory, summarise
from specproxy.config.load import load_start_config
from specproxy.config.schema import DrafterConfig
from specproxy.drafters import registry
from specproxy.vocabulary import DraftCounts, DrafterInfo

Make = Callable[..., Measured]


def test_the_bundled_configuration_declares_what_the_arms_need() -> None:
    """Every arm of the field but auto has a drafter in the bundled configuration, of a type that exists."""
    config = load_start_config(field_config())
    assert {drafter.type for drafter in config.drafters.values()} <= set(registry.types())
    assert field_arms(config.drafters, None) == list(FIELD_ARMS)
    kinds = {arm.drafter for arm in parse_arms(FIELD_ARMS, numeric=False)} - {"", "auto"}
    assert kinds == {"draft_model", "ngram", "suffix", "eagle3", "medusa", "mtp", "layer_skip"}


def test_arms_without_a_drafter_are_left_out_and_levels_can_be_fixed() -> None:
    """What is not loaded is not measured; a fixed K stands where the arm's form wants it, and never in auto."""
    assert field_arms(["eagle3"], 5) == ["eagle3;k=5", "eagle3;k=5;width=3", "auto"]
    assert [arm.k for arm in parse_arms(field_arms(["eagle3"], 5), numeric=False)] == [None, 5, 5, None]


def test_drafters_whose_weights_are_not_bundled_are_dropped() -> None:
    """A head that this copy of the package lacks is named and taken out; a path of the user's own stays."""
    config = load_start_config(field_config())
    config.drafters["mine"] = DrafterConfig(type="eagle3", path="/nowhere")
    gone = drop_missing(config)
    assert set(gone) <= {"eagle3", "medusa"}
    assert {"draft_model", "mtp", "ngram", "mine"} <= set(config.drafters)


def test_the_servers_own_words_about_its_drafters_are_read() -> None:
    """What /ready lists becomes DrafterInfo, of an older server too; anything else is no list."""
    info = DrafterInfo("mtp", "mtp", 8, None, "f", 10, 20)
    said = msgspec.to_builtins(info)
    assert drafters_of({"server": {"bitwise": {"engine": {"drafters": [said]}}}}) == [info]
    del said["weight_bytes"], said["kv_bytes"]
    (old,) = drafters_of({"server": {"given": {"engine": {"drafters": [said]}}}})
    assert (old.weight_bytes, old.kv_bytes) == (0, 0)
    assert drafters_of({"server": {"given": {"engine": "vLLM"}}}) == []
    assert drafters_of({"server": {"given": {"engine": {"drafters": [1]}}}}) == []


def test_methods_stand_beside_categories(make_measured: Make) -> None:
    """A row a method, a column a category and one over all, with ratio, spread, acceptance and length."""
    arms = parse_arms(["mtp;k=3"], numeric=False)
    counts = DraftCounts("mtp", steps=5, drafted=15, accepted=5, drafted_at=[5, 5, 5], accepted_at=[4, 1])
    results = [
        make_measured(arm, n, seconds, category=category, steps=5, **more)
        for arm, seconds, more in (
            ("off", 2.0, {}),
            ("mtp;k=3", 1.0, {"drafted": 15, "accepted": 5, "drafts": [counts]}),
        )
        for n, category in enumerate(("json", "edit"))
    ]
    summaries = summarise(results, arms)
    add_memory(summaries, arms, [DrafterInfo("mtp", "mtp", 8, None, "f", 3 * 2**20, 2**19)])
    grid = methods_by_category(summaries)
    assert grid.head == ["method", "json (1)", "edit (1)", "all (2)"]
    assert grid.rows[0] == ["off", "5 tok/s", "5 tok/s", "5 tok/s"]
    assert grid.rows[1][3] == "2.00 [2.00-2.00]\n33%, 2.00"
    overall = methods_overall(summaries)
    assert overall.rows == [["mtp;k=3", "3.0", "0.5", "2.00", "33%", "80%", "25%", "0%", "-", "-", "-", "-", "-"]]
    text = markdown(summaries, ["a note"])
    assert "| mtp;k=3 | 3.0 | 0.5 | 2.00 | 33% | 80% |" in text
    assert text.endswith("a note")


@pytest.mark.parametrize("cell", ["1.2 [a]", "a|b", "two\nlines"])
def test_a_cell_survives_both_forms(cell: str) -> None:
    """Brackets are no markup on a console; bars and line ends do not break a Markdown table."""
    grid = Grid("a [title]", ["x", "y"], [["row", cell]])
    out = io.StringIO()
    Console(file=out, width=80).print(grid.rich())
    assert cell.rsplit("\n", maxsplit=1)[-1] in out.getvalue()
    assert "a [title]" in out.getvalue()
    lines = grid.markdown().split("\n")
    assert len(lines) == 3
    assert lines[2].replace(r"\|", "").count("|") == 3

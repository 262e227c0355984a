"""What a sweep measures, and what it draws."""

from __future__ import annotations

import math
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from specproxy.bench.plot import check_can_draw, draw
from specproxy.bench.stats import paired_ratio
from specproxy.bench.sweep import Curve, Line, Point, Sweep, best_sizes, deep, lines
from specproxy.config.schema import DrafterConfig
from specproxy.errors import StartError
from specproxy.vocabulary import MAX_TREE_NODES, DrafterInfo

DRAFTERS = [DrafterInfo("mtp", "mtp", 12, None, "f"), DrafterInfo("ngram", "ngram", 5, None, "f")]


def sweep_of(*curves: tuple[str, int, list[float]]) -> Sweep:
    """A sweep with these ratios at 1, 2, ... levels."""
    made = []
    for drafter, width, ratios in curves:
        points = [Point(k, paired_ratio([math.log(r)] * 2), 1.0 + k, 0.5, 10.0) for k, r in enumerate(ratios, start=1)]
        made.append(Curve(drafter, width, Line(drafter, width, []).name, points))
    return Sweep(made, [], {})


def test_chains_go_as_deep_as_the_drafter() -> None:
    """Fixed K from 1 up to what the drafter can; no trees where they are not proven."""
    mtp, ngram = lines(DRAFTERS, trees=False)
    assert [arm.name for arm in ngram.arms()] == [f"ngram;k={k}" for k in range(1, 6)]
    assert [arm.k for arm in mtp.arms()] == list(range(1, 13))


def test_trees_are_swept_by_width_and_depth() -> None:
    """A drafter that branches gets a line for each width; a tree has all the nodes that its size allows."""
    found = lines(DRAFTERS, trees=True)
    assert [(line.drafter, line.width) for line in found] == [
        ("mtp", 1),
        ("mtp", 2),
        ("mtp", 3),
        ("mtp", 4),
        ("ngram", 1),
    ]
    arms = found[2].arms()
    assert [(arm.k, arm.width, arm.nodes) for arm in arms[:3]] == [(1, 3, 3), (2, 3, 6), (3, 3, 9)]
    assert all(arm.nodes <= MAX_TREE_NODES for line in found for arm in line.arms())
    assert found[2].name == "mtp, tree of width 3"


def test_drafters_may_go_as_deep_as_the_sweep() -> None:
    """The configured limit on K gives way to the sweep's; drafters that only answer requests of their own are out."""
    found = deep({"mtp": DrafterConfig(type="mtp", max_k=3), "prediction": DrafterConfig(type="prediction")})
    assert {name: drafter.max_k for name, drafter in found.items()} == {"mtp": 12}


def test_the_table_names_the_best_size() -> None:
    """A row a line, with its ratios and where the largest is; sizes that were not measured are dashes."""
    grid = best_sizes(sweep_of(("mtp", 1, [1.1, 1.5, 1.2]), ("mtp", 2, [1.3])))
    assert grid.head == ["drafter", "1", "2", "3", "best"]
    assert grid.rows == [
        ["mtp", "1.10", "1.50", "1.20", "2"],
        ["mtp, tree of width 2", "1.30", "-", "-", "1"],
    ]


def test_a_missing_matplotlib_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot draw is told what to install, before anything is measured."""
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(StartError, match=r"pip install 'specproxy\[plots\]'"):
        check_can_draw()


def test_the_picture_has_a_line_for_each_curve(tmp_path: Path) -> None:
    """A PNG comes out, of one prompt too, whose intervals have no end."""
    pytest.importorskip("matplotlib", reason="matplotlib is an extra (specproxy[plots]) and not installed here")
    lonely = Sweep([Curve("mtp", 1, "mtp", [Point(1, paired_ratio([0.1]), 1.5, 0.5, 9.0)])], [], {})
    for number, sweep in enumerate((sweep_of(("mtp", 1, [1.1, 1.5]), ("mtp", 2, [1.3, 1.4])), lonely)):
        file = tmp_path / f"{number}.png"
        draw(sweep, file)
        assert file.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    """A folder that is not there ends with its name."""
    pytest.importorskip("matplotlib", reason="matplotlib is an extra (specproxy[plots]) and not installed here")
    with pytest.raises(StartError, match="cannot be written"):
        draw(sweep_of(("mtp", 1, [1.0])), tmp_path / "nowhere" / "x.png")


@pytest.mark.timeout(300)
def test_the_command_sweeps_and_draws(run_bench: Any, tmp_path: Path) -> None:
    """Every size of a drafter is measured on the prompt, says the same as plain decoding, and is drawn."""
    pytest.importorskip("matplotlib", reason="matplotlib is an extra (specproxy[plots]) and not installed here")
    file = tmp_path / "sweep.png"
    arguments = ("--categories", "edit", "--limit", "1", "--max-tokens", "12", "--json", "--plot", str(file))
    code, report, shown = run_bench("--sweep", "--arms", "ngram", *arguments)
    assert code == 0, shown
    (curve,) = report["curves"]
    assert [point["levels"] for point in curve["points"]] == list(range(1, 13))
    assert all(point["length"] >= 1 for point in curve["points"])
    arms = report["categories"][0][0]["arms"]
    assert [(arm["identical"], arm["failed"]) for arm in arms[1:]] == [(1, 0)] * 12
    assert file.read_bytes().startswith(b"\x89PNG")
    assert "ratio to plain by levels drafted" in shown

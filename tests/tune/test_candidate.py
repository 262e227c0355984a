"""What is written: the active files with another ``speculate``, and the evidence above it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from specproxy.cli.main import main
from specproxy.errors import StartError
from specproxy.policy.catalogue import Catalogue, DrafterSpec
from specproxy.policy.policy import PolicySet
from specproxy.tune.candidate import check_set, edit, whole_set
from specproxy.tune.choices import Choice
from specproxy.tune.report import conclusion, evidence, table
from specproxy.tune.session import Options, Tried, Tuned

SHIPPED = Path(__file__).parents[2] / "policies"
CATALOGUE = Catalogue(drafters=(DrafterSpec("ngram", "ngram", 16, None, "n"), DrafterSpec("m", "draft_model", 16)))
FACTS = {
    "machine": {"cpu": "C", "gpus": "G", "cores": 4, "memory_gib": 8, "system": "Linux", "load_1m": 0.0},
    "software": {"specproxy": "0.1", "python": "3.11"},
}


BLOCKS = """
defaults: {speculate: {k: 3, tree: {width: 2}}}
routes:
  - name: mine
    match: {n: {ge: 1}}
    speculate:
      k:
        min: 1
        max: 2
  # the rest
  - name: other
"""


def tried(choice: Choice, **fields: object) -> Tried:
    """A choice that was faster."""
    found = Tried(
        setting=f"{choice.drafter}, k {choice.k_min} to {choice.k_max}",
        speculate=choice.speculate(),
        pairs=34,
        ratio=1.34,
        low=1.21,
        high=1.48,
        acceptance=0.7,
        tokens_per_step=3.4,
        now_acceptance=0.61,
        now_tokens_per_step=2.9,
        answers=34,
        identical=34,
        out="",
    )
    return msgspec.structs.replace(found, **fields)


def tuned(route: str, choice: Choice) -> Tuned:
    """A route for which something faster was found."""
    winner = tried(choice)
    others = [winner, tried(Choice("off"), ratio=None, low=None, high=None, out="among the slower half of 2")]
    return Tuned(
        route, "auto, k 4 to 12", 30, 34, 0.03, others, winner, choice, "faster", "proven faster by more than 3%"
    )


def written(folder: Path, *found: Tuned) -> dict[Path, str]:
    """The edited files of the set in ``folder``."""
    comments = {
        item.route: evidence(item, item.winner, Options(), FACTS, "2026-01-31") for item in found if item.winner
    }
    return edit(PolicySet.load(folder, CATALOGUE), found, comments)


def test_the_evidence_stands_above_what_it_is_for() -> None:
    """Ratio with its interval, prompts, acceptance, search, machine, versions and date, as comments."""
    ((file, text),) = written(SHIPPED, tuned("structured", Choice("m", 0, 8))).items()
    assert file.name == "10-structured.yaml"
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("speculate:"))
    told = " ".join(line.strip().removeprefix("#").strip() for line in lines[:at])
    for words in (
        "specproxy tune, 2026-01-31: 1.34x [1.21, 1.48] of the tokens/s of before (auto, k 4 to 12), proven faster by",
        "34 pairs on 34 prompts that the search did not see",
        "Accepted drafts: 61% to 70%; tokens per step: 2.90 to 3.40; identical answers: 34 of 34.",
        "Search: 2 settings on 30 prompts, 68 pairs, 1 at a time, at most 256 tokens, seed 0.",
        "C, 4 usable cores, 8 GiB, Linux",
        "specproxy 0.1, python 3.11",
    ):
        assert words in told
    assert all(len(line) <= 120 for line in lines)


def test_everything_else_of_the_file_stays() -> None:
    """Every line of the active file but the one that says how to speculate."""
    ((file, text),) = written(SHIPPED, tuned("structured", Choice("m", 0, 8))).items()
    before, after = file.read_text().splitlines(), text.splitlines()
    assert [line for line in before if line not in after] == ["    speculate: {k: {min: 4, max: 12}}"]
    assert [line for line in after if line not in before and not line.strip().startswith("#")] == [
        "    speculate: {drafters: m, k: {min: 0, max: 8}, tree: {width: 1, nodes: 16}}"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "routes: [{name: other, match: {n: 2}}, {name: mine}]\n",
        "routes:\n  - name: other\n    match: {n: 2}\n  - name: mine\n    speculate: off   # why\n",
        "routes:\n  - {name: other, match: {n: 2}}\n  - {name: mine, speculate: {drafters: ngram, k: 5}}\n",
        BLOCKS,
    ],
)
@pytest.mark.parametrize("choice", [Choice("m", 2, 4), Choice("off"), Choice("m", 0, 4, 2, 8)])
def test_a_route_decides_as_it_was_measured_however_it_was_written(tmp_path: Path, text: str, choice: Choice) -> None:
    """In flow or block style, with or without a ``speculate`` of its own; other routes decide as before."""
    (tmp_path / "a.yaml").write_text(text)
    before = {route.name: route.decision for route in PolicySet.load(tmp_path, CATALOGUE).routes}
    (candidate,) = written(tmp_path, tuned("mine", choice)).values()
    assert "# specproxy tune, 2026-01-31" in candidate
    assert all(
        comment in candidate for comment in ("# the rest", "# why") if comment in text and choice.drafter != "off"
    )
    (tmp_path / "a.yaml").write_text(candidate)
    after = {route.name: route.decision for route in PolicySet.load(tmp_path, CATALOGUE).routes}
    mine = choice.decision(before["mine"], list(CATALOGUE.drafter_names))
    if choice.drafter == "off":  # its tree is whatever it inherits
        after["mine"] = msgspec.structs.replace(after["mine"], tree_width=1, tree_nodes=16)
    assert msgspec.structs.replace(after["mine"], revision=mine.revision) == mine
    assert after["other"] == before["other"]


def test_two_routes_of_one_file_are_edited_together(tmp_path: Path) -> None:
    """Each with its own evidence."""
    (tmp_path / "a.yaml").write_text("routes:\n  - name: a\n    match: {n: 2}\n  - name: b\n")
    found = written(tmp_path, tuned("a", Choice("m", 0, 4)), tuned("b", Choice("ngram", 0, 8)))
    ((_, text),) = found.items()
    assert text.count("# specproxy tune") == 2
    assert text.index("drafters: m") < text.index("name: b") < text.index("drafters: ngram")


def test_a_whole_set_passes_policy_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file under its own name, with as few warnings as the active set has."""
    files = whole_set(SHIPPED, written(SHIPPED, tuned("code", Choice("m", 0, 8)), tuned("creative", Choice("m", 0, 2))))
    assert set(files) == {file.name for file in SHIPPED.glob("*.yaml")}
    check_set(files, CATALOGUE)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["policy", "check", str(tmp_path), "--drafter", "m=ngram"]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


def test_an_invalid_set_is_never_written() -> None:
    """What is wrong is told, with file and line."""
    with pytest.raises(StartError, match=r"no valid set(.|\n)*a.yaml:1: speculate.drafters: "):
        check_set({"a.yaml": "routes: [{name: a, speculate: {drafters: none}}]\n"}, CATALOGUE)


def test_the_table_has_a_row_for_everything_tried() -> None:
    """The winner's test last; what has no interval yet shows none."""
    grid = table(tuned("structured", Choice("m", 0, 8)))
    assert grid.title == "route structured, now: auto, k 4 to 12"
    assert [row[0] for row in grid.rows] == ["m, k 0 to 8", "off, k 0 to 0", "m, k 0 to 8"]
    assert [row[2] for row in grid.rows] == ["1.34x [1.21, 1.48]", "-", "1.34x [1.21, 1.48]"]
    assert grid.rows[1][-1] == "among the slower half of 2"
    assert conclusion(tuned("a", Choice("m", 0, 8))) == "route a: m, k 0 to 8 (proven faster by more than 3%)"

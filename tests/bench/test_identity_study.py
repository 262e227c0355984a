"""The identity study: what counts as a difference, what is asked, and that the house model has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from specproxy.bench.client import Answer
from specproxy.bench.identity import Cell, Identity, Said, cells_of, choose, difference, identity_table, spread, verdict
from specproxy.bench.records import Record
from specproxy.bench.stats import Ratio
from specproxy.errors import StartError
from specproxy.vocabulary import DrafterInfo, Numerics, TokenLogprob

NUMERICS = Numerics("f", "cpu", "bfloat16", "2", "bitwise", [1], 128, 1, 1, "fused", trees=True)
DRAFTERS = [DrafterInfo("mtp", "mtp", 12, None, "f"), DrafterInfo("ngram", "ngram", 5, None, "f")]
RECORD = Record("p", "chat", {}, 1)


def said(*logprobs: float, tokens: tuple[int, ...] = (4, 5), beside: float = -3.0) -> Said:
    """An answer of two tokens, with these logprobs."""
    answer = Answer(tokens=len(tokens), token_ids=list(tokens), finish_reason="stop", drafted=3, accepted=1)
    return Said(answer, [TokenLogprob(t, p, [(9, beside)]) for t, p in zip(tokens, logprobs, strict=False)])


def test_the_last_bit_of_a_logprob_is_a_difference() -> None:
    """Of the token itself or of one beside it."""
    plain = said(-1.0, -2.0)
    assert difference(said(-1.0, -2.0), plain) is None
    assert "token 1 has logprob" in (difference(said(-1.0, -2.0000000000000004), plain) or "")
    assert difference(said(-1.0, -2.0, beside=-3.0000000000000004), plain) is not None
    assert difference(said(-1.0), plain) == "1 tokens with logprobs, plain has 2"


def test_tokens_and_errors_are_differences() -> None:
    """Where only tokens were asked for they alone are compared; no answer is not the same answer."""
    plain = said(-1.0, -2.0)
    assert difference(said(), plain) is None
    assert difference(said(tokens=(4, 6)), plain) == "token 1 is 6, plain says 5"
    assert difference(Said(Answer(error="broken")), plain) == "no answer: broken"


def test_a_cell_counts_and_names_the_first_difference() -> None:
    """The table sums up, the verdict says where to look, and the exit code follows ``differing``."""
    cell = Cell(0.0, 8, "mtp")
    cell.compare(RECORD, said(-1.0, -2.0), said(-1.0, -2.0))
    same = Identity(1, [cell], Ratio(0.99, 0.98, 1.0, 0.9, 1.1, 8), {})
    assert same.differing == 0
    assert verdict(same)[0] == "every token and every logprob is that of plain decoding alone"
    assert "runs at 0.990 [0.980, 1.000]" in verdict(same)[1]
    cell.compare(RECORD, said(-1.0, -2.5), said(-1.0, -2.0))
    cell.compare(RECORD, said(-1.5, -2.5), said(-1.0, -2.0))
    found = Identity(1, [cell], None, {})
    assert found.differing == 2
    assert verdict(found)[0].startswith("T = 0, mtp, 8 at a time: 2 of 3 answers differ: p: token 1 has logprob -2.5")
    assert identity_table(found).rows[-1][3:] == ["3", "6", "12", "9", "3", "2"]


def test_prompts_come_from_all_categories() -> None:
    """The first of each, then the second; too few are one message."""
    records = [Record(f"{name}{i}", name, {}, i) for name in "ab" for i in range(3)]
    assert [record.id for record in spread(records, 3)] == ["a0", "b0", "a1"]
    with pytest.raises(StartError, match="7 prompts wanted, there are 6"):
        spread(records, 7)


def test_chains_and_claimed_trees_of_all_that_is_loaded() -> None:
    """Drafters that branch are also asked for trees where those are claimed; the reference is not compared with
    itself, plain decoding of several is."""
    arms = choose([], DRAFTERS, NUMERICS)
    assert [arm.name for arm in arms] == ["mtp", "ngram", "mtp;width=3", "auto"]
    without = msgspec.structs.replace(NUMERICS, trees=False)
    assert [arm.name for arm in choose([], DRAFTERS, without)] == ["mtp", "ngram", "auto"]
    cells = [(arm.name, n) for arm, n in cells_of(arms[:1])]
    assert cells == [("mtp", 1), ("off", 8), ("mtp", 8)]
    with pytest.raises(StartError, match="trees are not claimed"):
        choose(["mtp;width=2"], DRAFTERS, without)
    with pytest.raises(StartError, match="medusa is not loaded"):
        choose(["medusa"], DRAFTERS, NUMERICS)
    with pytest.raises(StartError, match="promises no equality"):
        choose([], DRAFTERS, msgspec.structs.replace(NUMERICS, exactness="numeric"))


@pytest.mark.timeout(300)
def test_the_command_finds_no_difference(run_bench: Callable[..., tuple[int, dict[str, Any], str]]) -> None:
    """The house model, drafted for by lookup, at both temperatures, alone and several at a time; and what it costs."""
    arguments = ("--identity", "4", "--categories", "edit,code", "--max-tokens", "8", "--json", "--markdown")
    code, report, shown = run_bench(*arguments, "--arms", "ngram;k=4")
    assert code == 0, shown
    assert [(cell["temperature"], cell["at_once"], cell["arm"]) for cell in report["cells"]] == [
        (t, *cell) for t in (0.0, 0.8) for cell in ((1, "ngram;k=4"), (8, "off"), (8, "ngram;k=4"))
    ]
    assert all(cell["answers"] == 8 and cell["differing"] == 0 for cell in report["cells"])
    assert all(cell["logprobs"] == cell["tokens"] // 2 * 6 for cell in report["cells"])
    assert sum(cell["accepted"] for cell in report["cells"]) > 0
    assert report["cost"]["units"] == 4
    assert "| all |" in shown

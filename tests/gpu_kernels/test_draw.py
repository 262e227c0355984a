"""Drawing on a GPU, in Triton's interpreter, against ``winners`` with noise from torch.

The interpreter's logarithms differ from torch's in their last bits, so scores are near and tokens equal.
"""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.draw import Drawn, draw, draw_reference
from specproxy.kernels.philox import gumbel
from tests.support.drawing import CUTS, PLAIN, draw_rows

INFINITE, NAN = float("inf"), float("nan")


def _logits(rows: int, width: int, seed: int = 0, steps: int = 0) -> torch.Tensor:
    """Random rows; ``steps`` to a unit, 0 for no rounding: few distinct values, so many ties."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3
    return (x * steps).round() / steps if steps else x


def _same(found: Drawn, expected: Drawn) -> None:
    """Scores are near, tokens equal wherever a score says that there is one."""
    torch.testing.assert_close(found.scores, expected.scores, atol=2e-5, rtol=2e-5, equal_nan=True)
    there = expected.scores.isfinite()
    assert torch.equal(found.tokens[there], expected.tokens[there])


@pytest.mark.parametrize("width", [2, 5, 1000, 2048, 2051, 6001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_rows_equal_winners(width, dtype):
    """The two best of rows with and without noise, in vocabularies that end inside a chunk, an id or two excluded."""
    x, rows = _logits(4, width).to(dtype), draw_rows(4, PLAIN, max(2, width - 3))
    for best in (1, 2):
        _same(draw(x, rows, best, cutoffs=False), draw_reference(x, rows, best))


@pytest.mark.parametrize(("width", "steps"), [(700, 0), (700, 1), (2500, 4)])
def test_rows_with_cutoffs_equal_winners(width, steps):
    """top_k, top_p, min_p and all of them at once keep exactly what the sort keeps, ties at the border by id."""
    x, rows = _logits(len(CUTS), width, seed=1, steps=steps), draw_rows(len(CUTS), CUTS, width - 1)
    _same(draw(x, rows, 2, cutoffs=True), draw_reference(x, rows, 2))


def test_ties_at_a_cutoff_are_kept_lowest_id_first():
    """Of eight equal logits the first three or four are kept, whatever their noise; a later chunk's count as well."""
    ids = [7, 30, 2047, 2048, 2049, 2060, 2090, 2100]
    x = torch.full((6, 2101), -50.0)
    x[:, ids] = 2.0
    rows = draw_rows(6, [(1.0, 3, 1.0, 0.0), (1.0, 0, 0.5, 0.0), (1.0, 5, 0.5, 0.0)], 2101)
    found = draw(x, rows, 2, cutoffs=True)
    for lane, kept in enumerate((3, 4, 3)):
        assert set(found.tokens[lane::3].flatten().tolist()) <= set(ids[:kept])
    _same(found, draw_reference(x, rows, 2))


def test_equal_best_logits_give_the_lowest_id():
    """Without noise the lowest of equal ids is first and the next one second, across chunks, signed zeros being one."""
    x = torch.full((2, 5000), -1.0)
    x[0, [4999, 2100, 77]] = 3.0
    x[1, 4000], x[1, 3000], x[1, 10] = 0.0, -0.0, 0.0
    found = draw(x, draw_rows(2, [(0.0, 0, 1.0, 0.0)], 5000), 2, cutoffs=False)
    assert found.tokens.tolist() == [[77, 2100], [10, 3000]]


@pytest.mark.filterwarnings("ignore:overflow encountered in divide:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")
@pytest.mark.parametrize("cutoffs", [False, True])
def test_rows_without_a_finite_maximum_are_drawn_from_their_logits(cutoffs):
    """Division that overflows and infinite logits fall back to the argmax; NaN and nothing at all show in the score."""
    x = _logits(7, 2100, seed=2)
    x[1, 2050], x[2, 5], x[3] = INFINITE, NAN, -INFINITE
    x[4, 1:] = -INFINITE
    cuts = [(1e-39, 0, 1.0, 0.0), (1.0, 3, 0.5, 0.1)]
    rows = draw_rows(7, cuts, 2100, lanes=[0, 1, 1, 1, 1, 0, -1])
    found = draw(x, rows, 2, cutoffs=cutoffs)
    assert found.tokens[[0, 1, 4, 5], 0].tolist() == [int(x[0].argmax()), 2050, 0, int(x[5].argmax())]
    assert found.scores[1, 0] == INFINITE
    assert found.scores[2, 0].isnan()
    assert found.scores[3, 0] == found.scores[6, 0] == found.scores[4, 1] == -INFINITE
    assert ((found.tokens >= 0) & (found.tokens < 2100)).all()
    for i in range(2):
        assert found.scores[i].tolist() == x[i].topk(2).values.tolist()


@pytest.mark.parametrize(("seed", "choice", "position"), [(0, 0, 0), (-1, 3, 2**32 - 1), (2**63 - 1, 2**31, 2**33 + 5)])
def test_the_noise_is_philoxs(seed, choice, position):
    """Over equal logits the two best scores and ids are the two largest of torch's noise, seeds and counters of any
    size."""
    rows = draw_rows(1, [(1.0, 0, 1.0, 0.0)], 3000)
    numbers = (torch.tensor([number]) for number in (seed, choice, position))
    rows = rows._replace(seed=next(numbers), choice=next(numbers), position=next(numbers))
    found = draw(torch.zeros(1, 3000), rows, 2, cutoffs=False)
    expected = gumbel(seed, choice, position, 1, 3000, torch.device("cpu"))[0].topk(2)
    assert found.tokens[0].tolist() == expected.indices.tolist()
    torch.testing.assert_close(found.scores[0], expected.values, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("cutoffs", [False, True])
def test_a_reduced_vocabulary_draws_as_its_target(cutoffs):
    """A drafter's id has the noise of the target's id, which is the answer; the others are as if they were masked."""
    cuts = CUTS[3::3] if cutoffs else PLAIN
    kept = torch.randperm(9000, generator=torch.Generator().manual_seed(3))[:2100].sort().values
    x, rows = _logits(len(cuts), 2100, seed=4, steps=4), draw_rows(len(cuts), cuts, 8990)
    found = draw(x, rows, 2, cutoffs=cutoffs, ids=kept)
    whole = torch.full((len(cuts), 9000), -INFINITE).index_copy(1, kept, x)
    _same(found, draw_reference(whole, rows, 2))
    _same(found, draw_reference(x, rows, 2, kept))


def test_a_rows_result_is_its_own():
    """Bits are the same alone, among others, and in a view of wider rows."""
    wide = _logits(6, 2200, seed=5)
    x, rows = wide[:, 50:2150], draw_rows(6, CUTS, 2100)
    together = draw(x, rows, 2, cutoffs=True)
    for i in (0, 3, 5):
        alone = draw(
            x[i : i + 1].contiguous(), rows._replace(lane=rows.lane[i : i + 1], position=rows.position[i : i + 1]), 2
        )
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.scores[0], together.scores[i])


def test_what_it_cannot_draw_is_an_error():
    """Three best ids, integer logits, rows without positions and maps of another length are refused."""
    x, rows = _logits(2, 100), draw_rows(2, PLAIN, 100)
    with pytest.raises(ValueError, match="best 3"):
        draw(x, rows, 3)
    with pytest.raises(ValueError, match="expected bfloat16"):
        draw(x.int(), rows)
    with pytest.raises(ValueError, match=r"expected \[2\]"):
        draw(x, rows._replace(position=rows.position[:1]))
    with pytest.raises(ValueError, match=r"expected \[100\] int64"):
        draw(x, rows, ids=torch.arange(99))

import numpy as np
import pytest
import torch

from specproxy.kernels.philox import gumbel_host
from specproxy.sampling.noise import Noise

CPU = torch.device("cpu")


def test_order_of_access_changes_nothing():
    """A position's noise is bitwise the same forwards, backwards, cached, forgotten or computed alone."""
    vocab = 1027
    forwards = Noise(5, 0, vocab, CPU)
    rows = [forwards.row(p).clone() for p in range(300)]
    backwards = Noise(5, 0, vocab, CPU)
    for p in reversed(range(300)):
        assert torch.equal(backwards.row(p), rows[p])
    for p in (0, 63, 64, 150, 299):
        assert torch.equal(Noise(5, 0, vocab, CPU).row(p), rows[p])
    forwards.forget_before(300)
    assert torch.equal(forwards.row(1), rows[1])


def test_noise_differs_by_seed_choice_and_position():
    """Each part of the key matters."""
    rows = [Noise(s, c, 64, CPU).row(p) for s, c, p in ((1, 0, 9), (2, 0, 9), (1, 1, 9), (1, 0, 10), (1 + 2**32, 0, 9))]
    assert all(not torch.equal(a, b) for i, a in enumerate(rows) for b in rows[:i])


def test_cache_is_bounded():
    """Blocks behind the committed text are dropped, and without that hint only a few stay."""
    noise = Noise(5, 0, 8192, CPU)
    for p in range(600):
        noise.row(p)
    assert len(noise._blocks) * noise._positions <= 160
    noise.forget_before(599)
    assert len(noise._blocks) == 1


def test_block_of_a_huge_vocabulary_holds_one_position():
    """A vocabulary larger than a block is served position by position."""
    noise = Noise(5, 0, 100_003, CPU)
    assert noise.row(7).shape == (100_003,)
    assert not torch.equal(noise.row(7), noise.row(8))


@pytest.mark.parametrize("vocab", [12, 8192, 70_001])
def test_every_block_is_keyed_by_absolute_position(vocab):
    """A row of any block is the noise of its own position."""
    noise = Noise(2**50 + 1, 2, vocab, CPU)
    for p in (0, 1, 7, 8, 63, 64, 65, 1000, 4095):
        expected = gumbel_host(2**50 + 1, 2, p, 1, vocab)[0]
        assert np.allclose(noise.row(p).numpy(), expected, atol=2e-6, rtol=2e-6)

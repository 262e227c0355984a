import numpy as np
import pytest
import scipy.stats
import torch

from specproxy.kernels import philox

# Random123 (Salmon et al.), kat_vectors, philox4x32 10: counter, key, result.
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
CPU = torch.device("cpu")


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_published_vectors(counter, key, expected, slow_philox):
    """All three forms give the known answers that Random123 publishes."""
    seed = key[0] | key[1] << 32
    assert slow_philox(counter, seed) == list(expected)
    host = philox.philox_host(tuple(np.full(1, c, np.uint64) for c in counter), seed)
    assert [int(word[0]) for word in host] == list(expected)
    device = philox.philox(tuple(torch.tensor([c]) for c in counter), seed)
    assert [int(word[0]) for word in device] == list(expected)


def test_forms_agree_on_random_counters(slow_philox):
    """numpy, torch and plain Python give the same integers, broadcast or not."""
    rng = np.random.default_rng(0)
    c0, c1 = rng.integers(0, 2**32, (5, 1), np.uint64), rng.integers(0, 2**32, (1, 7), np.uint64)
    c2, c3 = rng.integers(0, 2**32, (5, 7), np.uint64), rng.integers(0, 2**32, (1, 1), np.uint64)
    for seed in (0, 1, 2**53 - 1, 2**64 - 1, 0x123456789ABCDEF0):
        host = philox.philox_host((c0, c1, c2, c3), seed)
        device = philox.philox(tuple(torch.from_numpy(c.astype(np.int64)) for c in (c0, c1, c2, c3)), seed)
        for a, b in zip(host, device, strict=True):
            assert np.array_equal(a.astype(np.int64), b.numpy())
        for i, j in ((0, 0), (4, 6), (2, 3)):
            counter = [int(np.broadcast_to(c, (5, 7))[i, j]) for c in (c0, c1, c2, c3)]
            assert [int(word[i, j]) for word in host] == slow_philox(counter, seed)


def test_inputs_are_left_alone():
    """A counter array may be used again."""
    counter = tuple(np.full((3, 3), 9, np.uint64) for _ in range(4))
    philox.philox_host(counter, 5)
    assert all((word == 9).all() for word in counter)


@pytest.mark.parametrize("vocab", [1, 5, 8, 37])
def test_noise_is_keyed_by_seed_choice_position_and_id(vocab, oracle):
    """Every element of a block is the noise of its own (seed, choice, position, id), on both forms."""
    seed, choice, start = 2**40 + 17, 3, 1000
    host = philox.gumbel_host(seed, choice, start, 4, vocab)
    device = philox.gumbel(seed, choice, start, 4, vocab, CPU).numpy()
    expected = [[oracle.noise(seed, choice, start + p, v) for v in range(vocab)] for p in range(4)]
    assert host.dtype == device.dtype == np.float32
    assert host.shape == (4, vocab)
    np.testing.assert_allclose(host, expected, atol=2e-6, rtol=2e-6)
    np.testing.assert_allclose(device, expected, atol=2e-6, rtol=2e-6)


def test_extreme_words_give_finite_noise():
    """The smallest and the largest word stay away from both infinities."""
    words = np.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], np.float32)
    host, device = philox._perturb_host(words.copy()), philox._perturb(torch.from_numpy(words.copy())).numpy()
    np.testing.assert_allclose(host, device, rtol=1e-6)
    assert np.isfinite(host).all()
    assert host[0] == pytest.approx(33 * np.log(2), rel=1e-6)
    assert host[-1] == pytest.approx(-np.log(24 * np.log(2)), rel=1e-6)


def test_noise_is_gumbel():
    """A block of noise passes a Kolmogorov-Smirnov test against the standard Gumbel distribution; shifted it fails."""
    noise = philox.gumbel_host(11, 0, 0, 8, 4096).ravel()
    assert scipy.stats.kstest(noise, "gumbel_r").pvalue > 0.01
    assert scipy.stats.kstest(noise + 0.02, "gumbel_r").pvalue < 0.01

from __future__ import annotations

import pytest
import torch

from specproxy.errors import ModelLoadError
from specproxy.heads.blocks import product, read_geometry, rms_norm
from specproxy.heads.weights import Weights
from tests.heads.checkpoints import Draw, Sizes, fake_target

TARGET = fake_target(Sizes()).facts
BARE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}


def weights(**tensors: torch.Tensor) -> Weights:
    """A checkpoint of these tensors; ``__`` in a name stands for a dot."""
    return Weights("here", {n.replace("__", "."): t for n, t in tensors.items()}, torch.float64, "cpu")


def test_sizes_that_are_not_given_have_the_published_defaults() -> None:
    """As many key heads as query heads, a head width that divides, and an epsilon of 1e-6."""
    shape = read_geometry(BARE, TARGET, "here")
    assert (shape.kv_heads, shape.head_dim, shape.eps, shape.window) == (4, 8, 1e-6, None)
    assert (shape.kv.heads, shape.kv.k_dim, shape.kv.v_dim) == (4, 8, 8)


def test_sizes_that_are_given_hold() -> None:
    """A head width need not divide the hidden width."""
    shape = read_geometry(
        BARE | {"head_dim": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "num_attention_heads": 6}, TARGET, "here"
    )
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.eps) == (6, 2, 6, 1e-5)


@pytest.mark.parametrize("config", [{"num_attention_heads": 5}, {"num_key_value_heads": 3}])
def test_sizes_that_do_not_divide_are_refused(config: dict[str, int]) -> None:
    """Heads that cannot be grouped or have no whole width are named."""
    with pytest.raises(ModelLoadError, match="expected each to divide the one before"):
        read_geometry(BARE | config, TARGET, "here")


def test_projections_of_one_input_are_one_product() -> None:
    """Rows stand in the order of the names, each with its bias."""
    draw = Draw(0)
    parts = {f"p__{n}__{k}": draw.normal(*s) for n in "ab" for k, s in (("weight", (3, 5)), ("bias", (3,)))}
    x = draw.normal(2, 5)
    expected = [x @ parts[f"p__{n}__weight"].T + parts[f"p__{n}__bias"] for n in "ab"]
    torch.testing.assert_close(product(weights(**parts), "p.", ["a", "b"], [3, 3], 5)(x), torch.cat(expected, 1))


def test_a_bias_that_only_some_have_is_refused() -> None:
    """A product has a bias for every part or for none."""
    found = weights(p__a__weight=torch.ones(1, 2), p__b__weight=torch.ones(1, 2), p__a__bias=torch.ones(1))
    with pytest.raises(ModelLoadError, match=r"tensor p\.b\.bias is missing"):
        product(found, "p.", ["a", "b"], [1, 1], 2)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_norm_is_exact_in_float64(scale: float) -> None:
    """The norm keeps twelve digits, for states of any size."""
    x, weight = Draw(1).normal(3, 16) * scale, Draw(2).norm(16)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    norm = rms_norm(weights(n=weight), "n", 16, 1e-5)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=0)

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.errors import ModelLoadError
from specproxy.heads import rotary
from specproxy.heads.blocks import read_rotary, turn_in_place
from specproxy.heads.rotary import RotaryTable, make_rotary, rotate
from tests.heads.checkpoints import Sizes, fake_target
from tests.heads.reference import rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
RULES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn, own factor": YARN | {"attention_factor": 0.7},
    "yarn, DeepSeek's scales": YARN | {"mscale": 0.8, "mscale_all_dim": 1.2},
    "yarn, not truncated": YARN | {"truncate": False, "beta_fast": 16, "beta_slow": 2},
}


@pytest.mark.parametrize("name", RULES)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    """Every scaling rule gives transformers' frequencies and factor, within its float32."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rules = {"rope_theta": 50000.0, **RULES[name]}
    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=16384, rope_parameters=dict(rules)
    )
    ours = make_rotary(64, 50000.0, rules, "cpu")
    if name == "default":
        expected, factor = 50000.0 ** (-torch.arange(32) / 32), 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[rules["rope_type"]](config, "cpu")
    torch.testing.assert_close(ours.frequencies.float(), expected.float(), rtol=1e-5, atol=0)
    assert ours.factor == pytest.approx(factor, rel=1e-6)


@given(st.integers(0, 100_000), st.sampled_from([2, 4, 8, 12]), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_turning_is_a_complex_product(position: int, width: int, seed: int) -> None:
    """A head is turned as complex numbers are, at any position, in float64."""
    generator = torch.Generator().manual_seed(seed)
    heads = torch.randn(1, 3, width, dtype=torch.float64, generator=generator)
    cos, sin = make_rotary(width, 10000.0, None, "cpu").tables(torch.tensor([position]), torch.float64)
    expected = [rope(head.numpy(), position, 10000.0) for head in heads[0]]
    np.testing.assert_allclose(rotate(heads, cos, sin)[0].numpy(), np.stack(expected), rtol=1e-9, atol=1e-9)


def test_interleaved_pairs_are_neighbours() -> None:
    """The interleaved form turns what the other one does, with components in another order."""
    heads = torch.randn(5, 2, 8, dtype=torch.float64)
    cos, sin = make_rotary(8, 10000.0, None, "cpu").tables(torch.arange(5), torch.float64)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    torch.testing.assert_close(rotate(heads, cos, sin, interleaved=True), rotate(heads[..., order], cos, sin))


@pytest.mark.parametrize("rotated", [8, 4])
@pytest.mark.parametrize("limit", [rotary.MAX_TABLE, 10])
def test_a_table_turns_as_the_formula(rotated: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked up, computed where there are too many positions to look up, or partial: heads are turned alike."""
    monkeypatch.setattr(rotary, "MAX_TABLE", limit)
    made, positions = make_rotary(rotated, 10000.0, None, "cpu"), torch.tensor([3, 0, 49])
    merged = torch.randn(3, 3 * 8 + 5, dtype=torch.float64)
    expected = rotate(merged[:, :24].view(3, 3, 8), *made.tables(positions, torch.float64))
    rest = merged[:, 24:].clone()
    turn_in_place(merged[:, :24].view(3, 3, 8), RotaryTable(made, 50, torch.float64).at(positions))
    torch.testing.assert_close(merged[:, :24].reshape(3, 3, 8), expected)
    assert torch.equal(merged[:, 24:], rest)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "of type 'longrope'; expected default, linear, llama3 or yarn"),
        ({"rope_type": "llama3", "factor": 8.0}, "of type 'llama3' lacks 'low_freq_factor'"),
        ({"type": "linear"}, "of type 'linear' lacks 'factor'"),
    ],
)
def test_what_cannot_be_computed_is_refused(rules: dict[str, Any], message: str) -> None:
    """Types that need more than the position, and parameters that are missing, are named."""
    with pytest.raises(ModelLoadError, match=message):
        make_rotary(8, 10000.0, rules, "cpu")


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        ({}, 10000.0),
        ({"rope_theta": 500000.0}, 500000.0),
        ({"rope_theta": None, "rope_scaling": None}, 10000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0),
    ],
)
def test_the_base_is_the_heads_own(config: dict[str, Any], theta: float) -> None:
    """Without a base of its own a head has 10000, whatever the target's; both generations of keys are read."""
    target = fake_target(Sizes(), rope_theta=123.0).facts
    cos, _ = read_rotary(config, 8, target, "here").at(torch.tensor([5])).factors
    expected = np.cos(5 * theta ** (-np.arange(4) / 4))
    np.testing.assert_allclose(cos[0, 0, :4].numpy(), expected, atol=1e-12)


def test_positions_reach_as_far_as_the_targets() -> None:
    """A head trained for fewer positions than the target has still can be asked about all of them and a draft more."""
    target = fake_target(Sizes()).facts
    facts = SimpleNamespace(**vars(target.config) | {"max_position_embeddings": 9000})
    table = read_rotary(
        {"max_position_embeddings": 64}, 8, target.__class__(**vars(target) | {"config": facts}), "here"
    )
    assert table.at(torch.tensor([9062])).factors[0].shape == (1, 1, 8)


def test_a_head_that_lacks_a_rule_says_where(tmp_path: object) -> None:
    """The message of a rule that cannot be read begins with the path."""
    with pytest.raises(ModelLoadError, match=r"^here: rotary embedding of type 'linear' lacks"):
        read_rotary({"rope_scaling": {"type": "linear"}}, 8, fake_target(Sizes()).facts, "here")

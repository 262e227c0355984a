"""Sizes of published models, and where layers stand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specproxy.errors import ModelLoadError
from specproxy.models.grown.shapes import SHAPES, find_shape, layer_map
from specproxy.models.grown.target import grown_config


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-3-8b", 8_030_261_248), ("llama-3-70b", 70_553_706_496), ("llama-3.2-1b", 1_235_814_400)],
)
def test_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    """What transformers makes of a shape has exactly as many parameters as Meta's model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**grown_config({}, find_shape(name), 1e-5)))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("large", ["llama-3-8b", "llama-3-70b"])
def test_tiny_shapes_have_the_large_ones_ratios(large: str) -> None:
    """A tiny shape has the head width, the query heads per KV head and the MLP ratio of the shape it stands for."""
    shape, tiny = SHAPES[large], SHAPES[large.replace("llama-3", "tiny")]
    assert tiny.heads // tiny.kv_heads == shape.heads // shape.kv_heads
    assert tiny.head_dim == shape.head_dim
    assert tiny.intermediate / tiny.hidden == shape.intermediate / shape.hidden


@pytest.mark.parametrize(("small", "large"), [(10, 32), (10, 80), (3, 16), (7, 7), (10, 13)])
def test_layers_are_spread_evenly(small: int, large: int) -> None:
    """The first d layers hold no larger share of the small model than d / L, and less than one layer less."""
    standing = layer_map(small, large)
    assert standing[0] == 0
    assert standing[-1] == large
    for depth in range(large + 1):
        real = sum(after <= depth for after in standing[1:])
        assert real <= depth * small / large < real + 1


def test_the_house_heads_states_become_eagles_own() -> None:
    """States 2, 5 and 9 of ten layers stand where an 8B's middle and last state are read."""
    assert [layer_map(10, 32)[state] for state in (2, 5, 9)] == [7, 16, 29]


def test_fewer_layers_are_refused() -> None:
    """A model cannot be grown into a shape with fewer layers."""
    with pytest.raises(ModelLoadError, match="10 layers cannot be grown into 9"):
        layer_map(10, 9)


def test_an_unknown_shape_is_refused_with_the_known_ones() -> None:
    """The message names what there is."""
    with pytest.raises(ModelLoadError, match=r"'llama-9'.*llama-3-8b, llama-3-70b"):
        find_shape("llama-9")

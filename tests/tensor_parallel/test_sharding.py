"""How a layer is cut, and what cannot be."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from specproxy.config.flags import add_config_flags, flag_settings
from specproxy.config.load import load_start_config
from specproxy.config.schema import ModelConfig
from specproxy.engine.numerics import proven_rules
from specproxy.engine.ranks.part import load_part
from specproxy.engine.threads import Threads
from specproxy.errors import ModelLoadError
from specproxy.models.loading import load_model
from specproxy.models.sharding import Group, keep_share
from tests.tensor_parallel.conftest import SIZES, Shared


def _layer(kind: str, **more: Any) -> Any:
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(kind, **SIZES | more)
    layer = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).model.layers[0]
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("size", [2, 4])
def test_parts_add_up_to_the_layer(size: int) -> None:
    """What goes in is cut into rows, what comes out adds up over the ranks, and a bias behind a sum counts once."""
    whole = _layer("llama", num_key_value_heads=4, attention_bias=True, mlp_bias=True)
    x, mixed = torch.randn(3, 64, dtype=torch.float64), torch.randn(3, 64, dtype=torch.float64)
    parts = [_layer("llama", num_key_value_heads=4, attention_bias=True, mlp_bias=True) for _ in range(size)]
    for rank, part in enumerate(parts):
        keep_share(part, Group(rank, size))
    for name in ("q_proj", "k_proj", "v_proj"):
        rows = [getattr(part.self_attn, name)(x) for part in parts]
        torch.testing.assert_close(torch.cat(rows, 1), getattr(whole.self_attn, name)(x))
    added = sum(p.self_attn.o_proj(m) for p, m in zip(parts, mixed.chunk(size, 1), strict=True))
    torch.testing.assert_close(added, whole.self_attn.o_proj(mixed))
    torch.testing.assert_close(sum(part.mlp(x) for part in parts), whole.mlp(x))


def test_a_part_holds_no_more_than_its_part() -> None:
    """Memory behind a rank's weights is its own, not a view of the whole layer's."""
    layer = _layer("llama")
    keep_share(layer, Group(1, 2))
    for name, weight in layer.named_parameters():
        assert weight.untyped_storage().nbytes() == weight.numel() * weight.element_size(), name


@pytest.mark.parametrize("grow", ["", "tiny-8b"])
def test_a_number_that_does_not_divide_is_refused(grow: str) -> None:
    """Three ranks for the house model, or for what it is grown into: the message names each size that does not fit."""
    config = ModelConfig(path="house", grow=grow, device="cpu", tensor_parallel=3)
    heads, keys, width = (16, 4, 1568) if grow else (6, 2, 1024)
    with pytest.raises(ModelLoadError, match=rf"tensor_parallel 3 .*num_key_value_heads {keys}.*_size {width}") as why:
        load_part(config, Group(0, 3))
    assert (f"num_attention_heads {heads}" in str(why.value)) == (heads % 3 != 0)


def test_other_architectures_are_refused_by_name(write_model: Callable[..., str]) -> None:
    """A model that the lean loop does not run stays on one GPU."""
    config = ModelConfig(path=write_model("olmo2"), device="cpu", tensor_parallel=2)
    with pytest.raises(ModelLoadError, match=r"tensor_parallel covers llama, .*; olmo2 runs on one GPU"):
        load_part(config, Group(0, 2))


def test_more_ranks_than_gpus_are_refused() -> None:
    """The message says how many GPUs there are."""
    found = torch.cuda.device_count()
    with pytest.raises(ModelLoadError, match=f"needs {found + 2} GPUs, this host has {found}"):
        Group(0, 2).place(f"cuda:{found}")


def test_more_than_two_ranks_are_numeric(write_model: Callable[..., str]) -> None:
    """Their sums have an order that depends on the row, so nothing is tested and nothing promised."""
    model, _ = load_model(write_model("llama"), device="cpu")
    model.spec = replace(model.spec, ranks=4)
    rules = proven_rules(model, 64, Threads(1, 1), "auto")
    assert rules.exactness == "numeric"
    assert "4 ranks" in rules.detail


def test_what_one_rank_refuses_two_refuse(shared: Shared, tmp_path: Path) -> None:
    """A folder without a model is refused in the same words."""
    with pytest.raises(ModelLoadError, match=r"no config\.json in this folder"), shared({}, path=str(tmp_path)):
        pass


def test_the_flag_sets_the_option() -> None:
    """``--tensor-parallel 2`` is ``model.tensor_parallel``."""
    parser = argparse.ArgumentParser()
    add_config_flags(parser)
    settings = flag_settings(parser.parse_args(["--tensor-parallel", "2"]))
    assert load_start_config(flags=settings).model.tensor_parallel == 2

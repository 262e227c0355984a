"""Mixtures of experts: GLM-4.5's decoder layer as transformers has it, routing rules, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specproxy.errors import ModelLoadError
from specproxy.heads.blocks import SelfAttention, read_geometry, residual_norm, rms_norm
from specproxy.heads.moe import Experts, MixtureOfExperts, Router, Routing, read_routing
from specproxy.heads.mtp_families import Layer
from specproxy.heads.weights import Weights
from tests.heads.mtp_checkpoints import GLM, H, varied
from tests.heads.mtp_stock import PREFIX, TOLERANCE, entries, facts, our_output, randomised, stock_output, stock_weights

CASES: dict[str, dict[str, Any]] = {
    "as published": {},
    "no norms on queries and keys": {"use_qk_norm": False},
    "groups": {"n_group": 4, "topk_group": 2},
    "weights as they come": {"norm_topk_prob": False, "attention_bias": False},
    "all dimensions rotated": {"partial_rotary_factor": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_layer_is_transformers(case: str) -> None:
    """GLM-4.5's layer, with its experts, gives what transformers' gives."""
    from transformers.models.glm4_moe.modeling_glm4_moe import (
        Glm4MoeConfig,
        Glm4MoeDecoderLayer,
        Glm4MoeRotaryEmbedding,
    )

    config = varied(GLM, **CASES[case]).config
    stock_config = Glm4MoeConfig(**config, attn_implementation="eager", experts_implementation="eager")
    stock = randomised(Glm4MoeDecoderLayer(stock_config, layer_idx=2))
    x = entries()
    theirs = stock_output(stock, Glm4MoeRotaryEmbedding(stock_config), x)
    weights, shape = stock_weights(stock), read_geometry(config, facts(), "stock")
    layer = Layer(
        input_norm=rms_norm(weights, f"{PREFIX}input_layernorm.weight", H, shape.eps),
        attention=SelfAttention(weights, f"{PREFIX}self_attn.", 0, shape),
        mlp_norm=residual_norm(weights, f"{PREFIX}post_attention_layernorm.weight", H, shape.eps),
        mlp=MixtureOfExperts(weights, f"{PREFIX}mlp.", config, "sigmoid", shape),
    )
    weights.finish()
    torch.testing.assert_close(our_output(layer, shape.rotary, shape.kv, x), theirs, rtol=0, atol=TOLERANCE)


def router(bias: list[float], **routing: Any) -> Router:
    """A router that scores expert e by dimension e of its input."""
    tensors = {
        "weight": torch.eye(len(bias), dtype=torch.float64),
        "e_score_correction_bias": torch.tensor(bias, dtype=torch.float64),
    }
    rules = Routing(**{"scores": "sigmoid", "experts": len(bias), "top_k": 2} | routing)
    return Router(Weights("x", tensors, torch.float64, "cpu"), "", len(bias), rules)


def test_correction_bias_decides_who_is_chosen_but_not_how_much_he_counts() -> None:
    """An expert lifted by its bias is chosen, with the weight of its own score."""
    x = torch.tensor([[3.0, 2.0, 0.0, -3.0]], dtype=torch.float64)
    ids, weights = router([0, 0, 0, 5.0], normalise=False)(x)
    assert set(ids[0].tolist()) == {3, 0}
    torch.testing.assert_close(weights[0, ids[0] == 3], x[0, 3:].sigmoid())


def test_only_experts_of_the_best_groups_are_chosen() -> None:
    """A group counts by its best two, so the best expert of all may stand in a group that is left out."""
    x = torch.tensor([[4.0, -9.0, 2.0, 2.0]], dtype=torch.float64)
    assert set(router([0.0] * 4)(x)[0][0].tolist()) >= {0}
    ids, _ = router([0.0] * 4, groups=2, top_groups=1)(x)
    assert set(ids[0].tolist()) == {2, 3}


def test_chosen_weights_sum_to_the_scale() -> None:
    """Normalised weights sum to one before they are scaled."""
    _, weights = router([0.0] * 6, top_k=3, scale=2.5)(torch.randn(5, 6, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(1), torch.full((5,), 2.5, dtype=torch.float64))


def test_experts_see_the_rows_that_chose_them_and_no_others() -> None:
    """Rows of one call come out as each alone, whichever experts the others chose."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "gate_up_proj": torch.randn(5, 8, 6, generator=generator, dtype=torch.float64),
        "down_proj": torch.randn(5, 6, 4, generator=generator, dtype=torch.float64),
    }
    experts = Experts(Weights("x", tensors, torch.float64, "cpu"), "", 5, 6, 4)
    x = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    ids = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(7)])
    weights = torch.rand(7, 2, generator=generator, dtype=torch.float64)
    together = experts(x, ids, weights)
    alone = torch.cat([experts(x[i : i + 1], ids[i : i + 1], weights[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_router_scores_in_float32_where_the_head_is_in_bfloat16() -> None:
    """Experts whose scores differ by less than bfloat16 can tell are still ranked."""
    weight = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2**-6, 2**-9]])
    rules = Routing("softmax", 2, 1)
    route = Router(Weights("x", {"weight": weight}, torch.bfloat16, "cpu"), "", 3, rules)
    ids, weights = route(torch.tensor([[8.0, -1.0, 8.5]]).bfloat16())
    assert ids.tolist() == [[1]]
    assert weights.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "changes",
    [{"n_group": 3}, {"topk_group": 9}, {"num_experts_per_tok": 5, "n_group": 4, "topk_group": 2}],
)
def test_routing_that_cannot_work_is_refused(changes: dict[str, int]) -> None:
    """Groups must divide the experts, and hold as many as a row uses."""
    with pytest.raises(ModelLoadError, match="as many experts as a row needs"):
        read_routing(varied(GLM, **changes).config, "sigmoid", "x")


def test_number_of_experts_must_be_given() -> None:
    """A file with experts needs a configuration that counts them."""
    with pytest.raises(ModelLoadError, match="no n_routed_experts or num_experts"):
        read_routing(varied(GLM, n_routed_experts=...).config, "sigmoid", "x")

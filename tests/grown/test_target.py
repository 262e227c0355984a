"""A grown model computes what the small one does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specproxy.errors import ModelLoadError
from specproxy.models.base import FINAL
from specproxy.models.grown.shapes import SHAPES, Shape, layer_map
from specproxy.models.grown.target import RealIds, grow_target, grown_stock, random_target
from specproxy.models.loading import find_model
from tests.grown.running import REAL, ZERO, Lean, assert_same, grown, house, random_ids

GAP = 1e-4
"""Two best logits that are nearer than this may change places in float32."""

PROMPT = "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n"


def test_logits_are_the_small_models(small: Lean, large: tuple[str, Lean]) -> None:
    """In float64 the logits of real ids differ by rounding alone."""
    ids = random_ids()
    assert_same(large[1].run(ids)[0][:, :REAL], small.run(ids)[0])


def test_a_draft_model_grows_alike() -> None:
    """With tied matrices and heads of the same width a draft model's logits stay."""
    ids = random_ids()
    expected = Lean(house("draft", torch.float64)).run(ids)[0]
    found = Lean(grown("draft", "tiny-1b", torch.float64)).run(ids)[0]
    assert_same(found[:, :REAL], expected)


def test_free_weights_do_not_matter() -> None:
    """With zeros where random numbers stood the logits are the same, though most weights differ."""
    ids = random_ids()
    models = [grown("draft", "tiny-1b", torch.float64, fill) for fill in ("random", "zero")]
    layers = [torch.cat([p.flatten() for p in model.model.layers[0].parameters()]) for model in models]
    assert (layers[0] != layers[1]).double().mean() > 0.5
    first, second = (Lean(model).run(ids)[0][:, :REAL] for model in models)
    assert_same(first, second)


def test_states_stand_where_the_map_says(small: Lean, large: tuple[str, Lean]) -> None:
    """Behind each layer of the small model its state is the beginning of the grown one's, and zeros follow."""
    ids, (name, model) = random_ids(), large
    standing = layer_map(10, SHAPES[name].layers)
    expected = small.run(ids, [*range(1, 10), FINAL])[1]
    found = model.run(ids, [*standing[1:10], FINAL])[1]
    width = small.model.spec.hidden_size
    for state, wide in zip(expected, found, strict=True):
        assert_same(wide[:, :width], state)
        assert wide[:, width:].abs().max() < ZERO


def test_fewer_layers_are_a_fair_share(small: Lean, large: tuple[str, Lean]) -> None:
    """Half of the grown layers, as a draft that skips the rest runs them, are half of the small ones."""
    ids, (name, model) = random_ids(), large
    expected = small.run(ids, depth=5)[0]
    assert_same(model.run(ids, depth=-(-SHAPES[name].layers // 2))[0][:, :REAL], expected)


@pytest.fixture(scope="module", params=["tiny-8b", "tiny-70b"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The house target and what it is grown into, as transformers runs them, float32."""
    stock = house("target", torch.float32)
    return stock, grow_target(stock, SHAPES[request.param], "cpu", torch.float32)


def test_what_transformers_captures_is_padded_with_zeros(pair: tuple[Any, Any]) -> None:
    """Every hidden state of transformers' own forward is exactly zero behind the small model's width."""
    width = pair[0].config.hidden_size
    with torch.inference_mode():
        states = pair[1](random_ids()[None], output_hidden_states=True).hidden_states
    assert len(states) == pair[1].config.num_hidden_layers + 1
    assert not any(bool(state[..., width:].any()) for state in states)


def test_float32_picks_the_same_tokens(pair: tuple[Any, Any], small: Lean) -> None:
    """transformers' own forward in float32 agrees with the small one, and where the best token differs the two best
    were closer than rounding."""
    ids = random_ids(160)
    with torch.inference_mode():
        expected, found = (model(ids[None]).logits[0, :, :REAL] for model in pair)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    best = small.run(ids)[0].topk(2).values
    near = best[:, 0] - best[:, 1] < GAP
    assert bool((near | (found.argmax(-1) == expected.argmax(-1))).all())


def test_generation_is_the_same_token_for_token(pair: tuple[Any, Any]) -> None:
    """transformers' generate writes the same text with both, padding being masked for the grown one."""
    tokenizer = Tokenizer.from_file(str(find_model("house", "target") / "tokenizer.json"))
    prompt = torch.tensor([tokenizer.encode(PROMPT).ids])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24, "attention_mask": torch.ones_like(prompt)}
    expected, found = (model.generate(prompt, logits_processor=[RealIds(REAL)], **options) for model in pair)
    assert expected.shape[1] > prompt.shape[1] + 8
    assert found.tolist() == expected.tolist()


def test_padding_is_never_chosen() -> None:
    """A padded row's logit of zero beats negative ones, unless it is masked."""
    scores = torch.full((1, 10), -1.0)
    scores[0, 6:] = 0
    scores[0, 3] = -0.5
    assert int(scores.argmax()) == 6
    assert int(RealIds(6)(torch.zeros(1, 1, dtype=torch.long), scores).argmax()) == 3


def test_grown_stock_says_what_is_real() -> None:
    """Real ids, layers and an identity that depends on the shape come with the model."""
    stock, folder = house("draft", torch.float32), find_model("house", "draft")
    made = [grown_stock(stock, folder, name) for name in ("tiny-1b", "tiny-8b")]
    assert [one.real_vocab for one in made] == [REAL, REAL]
    assert [one.layers for one in made] == [(0, 2, 4, 5), (0, 4, 8, 12)]
    assert made[0].fingerprint != made[1].fingerprint
    assert made[0].model.generation_config.eos_token_id == stock.generation_config.eos_token_id
    assert made[0].model.dtype == torch.float32


class Made(TorchDispatchMode):
    """Counts the bytes of every tensor that an operation makes, kept or not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
                fresh = tensor.untyped_storage()._cdata not in known
                self.bytes += tensor.untyped_storage().nbytes() if fresh else 0
        return out


def test_building_needs_no_second_copy() -> None:
    """All tensors that are ever made are the model and less than one layer beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 6, "num_key_value_heads": 2}
    stock = LlamaForCausalLM(LlamaConfig(**sizes, head_dim=8, vocab_size=64, num_hidden_layers=2)).eval()
    shape = Shape(256, 896, 8, 32, 4, 16, 512)
    with Made() as made:
        model = grow_target(stock, shape, "cpu", torch.float32)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    layer = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    assert size <= made.bytes < size + layer


def test_projections_of_one_input_lie_side_by_side() -> None:
    """Merging them for a layer loop copies one layer at a time and frees what it copied in one piece."""
    layer = grown("draft", "tiny-8b", torch.float32).model.layers[0]
    for first, *others in (
        (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
        (layer.mlp.gate_proj, layer.mlp.up_proj),
    ):
        base = first.weight.untyped_storage().data_ptr()
        assert all(one.weight.untyped_storage().data_ptr() == base for one in others)


def test_a_random_model_has_the_shape_and_the_configuration() -> None:
    """Every weight is random, logits are finite, tokens and positions are configured as before."""
    stock = house("draft", torch.float32)
    model = random_target(stock, SHAPES["tiny-1b"], "cpu", torch.float32)
    assert all(bool(p.all()) and not p.requires_grad for p in model.parameters())
    with torch.inference_mode():
        assert model(random_ids()[None]).logits.isfinite().all()
    assert model.config.max_position_embeddings == stock.config.max_position_embeddings
    assert model.generation_config.eos_token_id == stock.generation_config.eos_token_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 128}, "hidden_size 192 does not fit 128"),
        ({"intermediate": 500}, "intermediate_size 512 does not fit 500"),
        ({"heads": 4}, "query heads of a KV head 3 does not fit 2"),
        ({"head_dim": 96}, "head_dim 64 does not divide 96"),
        ({"vocab": 8000}, "vocab_size 8192 does not fit 8000"),
        ({"layers": 2}, "3 layers cannot be grown into 2"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    """The message names the size."""
    with pytest.raises(ModelLoadError, match=message):
        grow_target(house("draft", torch.float32), replace(SHAPES["tiny-1b"], **changes), "cpu", torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model type qwen2 cannot be grown"),
        ({"tie_word_embeddings": False}, "cannot be grown into a shape that ties it"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type linear"),
    ],
)
def test_what_would_compute_something_else_is_refused(changes: dict[str, Any], message: str) -> None:
    """Only what the placement covers is grown."""
    stock = house("draft", torch.float32)
    for key, value in changes.items():
        setattr(stock.config, key, value)
    with pytest.raises(ModelLoadError, match=message):
        grow_target(stock, SHAPES["tiny-1b"], "cpu", torch.float32)

"""Heads around the GPU's kernels, in Triton's interpreter, against heads of torch's operations."""

from __future__ import annotations

import pytest
import torch

from specproxy.drafters.held import held_bytes
from specproxy.heads import eagle3, mtp
from specproxy.heads.blocks import SelfAttention, SwiGLU, read_geometry, residual_norm
from specproxy.heads.device_parts import DeviceAttention, DeviceParts, RowNorm
from specproxy.heads.eagle import EagleHead
from specproxy.heads.readings import Reading
from specproxy.heads.weights import Weights
from specproxy.kernels.attention import Scoring, Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.ragged_attention import plan_ragged
from tests.heads.checkpoints import Checkpoint, Draw, Sizes, eagle1, fake_target, llama_config, llama_tensors
from tests.heads.checkpoints import original_eagle3 as published_eagle3

SIZES = Sizes(hidden=32, target_hidden=32, intermediate=48, heads=4, kv_heads=2, head_dim=8)
PAGE, COUNT = 16, 7


def _weights(checkpoint: Checkpoint, dtype: torch.dtype, kernels: bool) -> Weights:
    weights = Weights("here", checkpoint.tensors, dtype, "cpu")
    if kernels:
        weights.use(DeviceParts())
    return weights


def _run(head, dtype):
    """Entries of a text, then two on the head's own states: all states and scores."""
    kv = KVBuffers.allocate(head.spec.layers, 6, PAGE, dtype, "cpu")
    generator = torch.Generator().manual_seed(3)
    taps = torch.randn(COUNT, len(head.spec.hidden) * SIZES.target_hidden, generator=generator).to(dtype)
    ids = torch.randint(0, SIZES.vocab, (COUNT + 2,), generator=generator)
    state, at, out = head.fuse(taps), 0, []
    for count in (COUNT, 1, 1):
        positions = torch.arange(at, at + count)
        slots = 2 * PAGE + 1 + positions
        plan = plan_ragged([Span(0, count, at + 1, [2], first=1)], slots, kv, head.spec.group)
        step = head.step(ids[at : at + count], state, positions, plan, kv)
        out += [step.recurrent.float(), head.logits(step.features).float()]
        state, at = step.recurrent[-1:], at + count
    return out


def _eagle(kernels, dtype):
    target = fake_target(SIZES, dtype).facts
    checkpoint = eagle1(SIZES, layers=2)
    return EagleHead(_weights(checkpoint, dtype, kernels), checkpoint.config, target)


def _eagle3(kernels, dtype):
    target = fake_target(SIZES, dtype).facts
    checkpoint = published_eagle3(SIZES)
    return eagle3.build(_weights(checkpoint, dtype, kernels), checkpoint.config, target, Reading("nominal", (1, 5, 8)))


def _mtp(kernels, dtype):
    """As MiMo has it, with biases of q, k and v."""
    target, draw, prefix = fake_target(SIZES, dtype).facts, Draw(2), "model.mtp_layers.0."
    tensors = dict(llama_tensors(draw, SIZES, prefix, SIZES.hidden))
    for name, rows in (("q", 32), ("k", 16), ("v", 16)):
        tensors[f"{prefix}self_attn.{name}_proj.bias"] = draw.normal(rows)
    tensors |= {f"{prefix}{n}.weight": draw.norm(32) for n in ("token_layernorm", "hidden_layernorm")}
    tensors |= {f"{prefix}{n}.weight": draw.norm(32) for n in ("input_layernorm", "final_layernorm")}
    tensors[f"{prefix}input_proj.weight"] = draw.matrix(32, 64)
    checkpoint = Checkpoint(tensors, llama_config(SIZES))
    return mtp.build(_weights(checkpoint, dtype, kernels), dict(checkpoint.config), target)


@pytest.mark.parametrize(("make", "dtype"), [(_eagle, torch.float16), (_eagle3, torch.float32), (_mtp, torch.float16)])
def test_a_head_on_kernels_is_the_head(make, dtype):
    """States and scores of entries and of drafted levels are those of torch's operations, within rounding."""
    ours, expected = _run(make(True, dtype), dtype), _run(make(False, dtype), dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=tolerance)


def test_norms_of_queries_and_keys_are_per_head():
    """Attention with norms of q and k, and a window, is torch's."""
    draw, shape = Draw(5), read_geometry(llama_config(SIZES), fake_target(SIZES, torch.float32).facts, "here")
    tensors = dict(llama_tensors(draw, SIZES, "", SIZES.hidden))
    tensors |= {f"self_attn.{n}_norm.weight": draw.norm(8) for n in "qk"}
    x, results = draw.normal(3, 32).float(), []
    for kernels in (False, True):
        attention = SelfAttention(_weights(Checkpoint(tensors), torch.float32, kernels), "self_attn.", 0, shape)
        kv = KVBuffers.allocate([shape.kv], 4, PAGE, torch.float32, "cpu")
        plan = plan_ragged([Span(0, 3, 4, [2])], 2 * PAGE + torch.arange(4, 7), kv, shape.group)
        results.append(attention(x, shape.rotary.at(torch.arange(4, 7)), plan, kv))
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)


def test_what_has_no_kernel_goes_through_torch():
    """Heads that are rotated in part, and gates with a bias."""
    target = fake_target(SIZES, torch.float32).facts
    parts = DeviceParts()
    product = parts.linear(torch.zeros(64, 32))
    whole = read_geometry(llama_config(SIZES), target, "here")
    half = read_geometry(llama_config(SIZES) | {"partial_rotary_factor": 0.5}, target, "here")
    scoring = Scoring(1.0)
    assert isinstance(parts.attention((product, product), None, whole, scoring), DeviceAttention)
    assert parts.attention((product, product), None, half, scoring) is None
    assert parts.mlp(parts.linear(torch.zeros(64, 32), torch.zeros(64)), product) is None


def test_a_norm_takes_rows_that_lie_apart():
    """Parts of wider rows are normed as copies of them."""
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    norm = RowNorm(torch.ones(32), 1e-6)
    assert torch.equal(norm(x[:, 32:64]), norm(x[:, 32:64].clone()))
    assert torch.equal(norm.after(x[:, :32], x[:, 64:])[1], norm(x[:, :32] + x[:, 64:]))


def test_weights_are_held_once():
    """Each part of a layer keeps the merged weight alone, whichever way it runs."""
    target = fake_target(SIZES, torch.float16).facts
    shape = read_geometry(llama_config(SIZES), target, "here")
    checkpoint = Checkpoint(dict(llama_tensors(Draw(1), SIZES, "", SIZES.hidden)))
    weights = _weights(checkpoint, torch.float16, True)
    made = (
        SelfAttention(weights, "self_attn.", 0, shape),
        SwiGLU(weights, "mlp.", shape),
        residual_norm(weights, "post_attention_layernorm.weight", 32, 1e-6),
    )
    assert held_bytes(made, shape.rotary) == sum(2 * tensor.numel() for tensor in checkpoint.tensors.values())

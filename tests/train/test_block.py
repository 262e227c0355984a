from __future__ import annotations

import torch
from torch import Tensor

from specproxy.train.block import BlockShape
from specproxy.train.eagle3_head import Eagle3Head
from specproxy.train.packing import Batch, Document, batches, shift

SHAPE = BlockShape(
    hidden_size=16, intermediate_size=24, heads=4, kv_heads=2, head_dim=8, rope_theta=100.0, rms_norm_eps=1e-5
)
STEPS = 4


def one_by_one(head: Eagle3Head, taps: Tensor, embedded: Tensor, start: int) -> list[Tensor]:
    """A drafter without any unrolling: taps [n, C * D] and embedded [n, H] of one document; its features [H] for each
    guess from ``start``, every entry of the sequence standing in a list and attention looking at all of them."""
    layer, heads = head.midlayer, SHAPE.heads
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def entry(hidden: Tensor, token: Tensor, position: int) -> Tensor:
        x = torch.cat([layer.input_layernorm(token), layer.hidden_norm(hidden)])
        attention = layer.self_attn
        q, k, v = (p(x).view(-1, SHAPE.head_dim) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        keys.append(turned(k, position).repeat_interleave(heads // SHAPE.kv_heads, 0))
        values.append(v.repeat_interleave(heads // SHAPE.kv_heads, 0))
        scores = torch.stack([(turned(q, position) * key).sum(-1) for key in keys], -1) / SHAPE.head_dim**0.5
        mixed = torch.einsum("hn,nhw->hw", scores.softmax(-1), torch.stack(values))
        hidden = hidden + attention.o_proj(mixed.flatten())
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    for position in range(start + 1):
        hidden = entry(head.fc(taps[position]), embedded[position + 1], position)
    features = [head.norm(hidden)]
    for step in range(1, STEPS):
        hidden = entry(hidden, embedded[start + 1 + step], start + step)
        features.append(head.norm(hidden))
    return features


def turned(heads: Tensor, position: int) -> Tensor:
    """Rotary embedding by complex numbers: pairs are (i, i + W / 2)."""
    half = SHAPE.head_dim // 2
    angles = position * SHAPE.rope_theta ** (-torch.arange(half) / half)
    pairs = torch.complex(heads[:, :half], heads[:, half:]) * torch.polar(torch.ones(half), angles)
    return torch.cat([pairs.real, pairs.imag], -1)


def packed() -> Batch:
    """Three documents in two rows."""
    documents = [
        Document(tuple(range(1, 15)), 5, "a"),
        Document(tuple(range(20, 29)), 3, "a"),
        Document(tuple(range(40, 60)), 12, "a"),
    ]
    return next(batches(documents, length=30, rows=2, seed=3))


def test_unrolled_steps_equal_a_drafter_that_goes_one_entry_at_a_time() -> None:
    """Each guess from each start sees the target's entries up to it and its own, at their positions, and nothing of
    another document."""
    torch.manual_seed(0)
    head = Eagle3Head(SHAPE, 24, torch.arange(0, 64, 4), 64)
    batch = packed()
    taps, embedded = torch.randn(2, 30, 24), torch.randn(2, 30, 16)
    found = list(head.unroll(taps, embedded, batch, STEPS))
    checked = 0
    for row, column in batch.usable.nonzero().tolist():
        start = int(batch.starts[row, column])
        first = start - int(batch.positions[row, start])
        end = first + int((batch.documents[row] == batch.documents[row, start]).sum())
        steps = min(STEPS, end - start - 1)
        padded = torch.cat([embedded[row, first:end], torch.zeros(STEPS, 16)])
        wanted = one_by_one(head, taps[row, first:end], padded, start - first)
        for step in range(steps):
            torch.testing.assert_close(found[step][row, column], wanted[step], rtol=2e-5, atol=2e-5)
            checked += 1
    assert checked > 30


def test_the_reference_notices_a_wrong_position() -> None:
    """The check is able to fail: positions one too high in later steps give other features."""
    torch.manual_seed(0)
    head = Eagle3Head(SHAPE, 24, torch.arange(0, 64, 4), 64)
    batch = packed()
    taps, embedded = torch.randn(2, 30, 24), torch.randn(2, 30, 16)
    right = list(head.unroll(taps, embedded, batch, 2))[1]
    hidden, memory = head.midlayer.first(shift(embedded, 1), head.fc(taps), batch)
    token = embedded.gather(1, (batch.starts + 2).clamp_max(29)[..., None].expand(-1, -1, 16))
    wrong = head.midlayer.next(token, hidden, batch.positions.gather(1, batch.starts) + 2, memory)
    assert (head.norm(wrong) - right)[batch.usable].abs().max() > 1e-3

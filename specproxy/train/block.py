"""EAGLE-3's decoder layer, unrolled over draft steps as in training-time test (Li et al., arXiv 2503.01840, 3.2).

Step j at position t stands for the drafter's j-th guess behind the target's state of t. What it may look at is what it
would have when serving: the entries that came from the target's states, up to t (step 0), and its own of steps 1 to j
at the same t. So the attention of step j has a causal part over step 0 and j diagonal entries. Step 0 has keys and
values of every token, but only positions with something to guess ask: prompts cost little. Parameters carry the
published names.

Shapes: B rows, T tokens, S starts, H width, Hkv KV heads, G query heads a KV head, W head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specproxy.heads.rotary import Rotary, make_rotary, rotate
from specproxy.train.packing import Batch, pick


@dataclass(frozen=True)
class BlockShape:
    """Sizes of the layer."""

    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float


@dataclass
class Memory:
    """Keys and values, rotated: ``keys`` and ``values`` of step 0 [B, Hkv, T, W], then of each step [B, Hkv, S, W].

    ``mask`` [B, 1, S, T] bool: who sees whom in step 0.
    """

    mask: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Norm(nn.Module):
    """RMSNorm in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] -> the same shape, float32."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self._eps)


class Turn:
    """Rotates heads [B, X, Hn, W] by their positions [B, X]."""

    def __init__(self, rotary: Rotary, positions: Tensor) -> None:
        self._cos, self._sin = rotary.tables(positions.flatten(), torch.float32)

    def __call__(self, heads: Tensor) -> Tensor:
        """The same shape and dtype."""
        turned = rotate(heads.float().flatten(0, 1), self._cos, self._sin)
        return turned.to(heads.dtype).view(heads.shape)


class Attention(nn.Module):
    """Input 2H wide, output H wide."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self._shape = shape
        width = 2 * shape.hidden_size
        self.q_proj = nn.Linear(width, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(width, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(width, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden_size, bias=False)

    def remember(self, x: Tensor, turn: Turn, memory: Memory) -> None:
        """Keys and values of x [B, X, 2H] join ``memory``."""
        memory.keys.append(turn(self._heads(self.k_proj(x))).transpose(1, 2))
        memory.values.append(self._heads(self.v_proj(x)).transpose(1, 2))

    def forward(self, x: Tensor, turn: Turn, memory: Memory) -> Tensor:
        """x [B, S, 2H] of the starts -> [B, S, H], over what ``memory`` holds."""
        q = turn(self._heads(self.q_proj(x))).transpose(1, 2).unflatten(1, (self._shape.kv_heads, -1))
        mixed = attend(q * self._shape.head_dim**-0.5, memory)
        out: Tensor = self.o_proj(mixed.flatten(1, 2).transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self._shape.head_dim))
        return heads


def attend(q: Tensor, memory: Memory) -> Tensor:
    """q [B, Hkv, G, S, W], scaled -> mixed values of the same shape.

    One softmax over both parts, computed as two: the causal part with its log-sum-exp, and the diagonal entries.
    """
    first_key, first_value = memory.keys[0], memory.values[0]
    size = q.shape[2:4]
    scores: Tensor = (q.flatten(2, 3) @ first_key.transpose(-1, -2)).unflatten(2, size)
    scores = scores.float().masked_fill(~memory.mask[:, :, None], -torch.inf)
    causal = scores.softmax(-1).to(first_value.dtype)
    mixed: Tensor = (causal.flatten(2, 3) @ first_value).unflatten(2, size)
    if len(memory.keys) == 1:
        return mixed
    own_keys = torch.stack(memory.keys[1:], 3)
    own_values = torch.stack(memory.values[1:], 3)
    own = torch.einsum("bkgtw,bktjw->bkgtj", q, own_keys).float()
    shares = torch.cat([scores.logsumexp(-1, keepdim=True), own], -1).softmax(-1).to(first_value.dtype)
    return shares[..., :1] * mixed + torch.einsum("bkgtj,bktjw->bkgtw", shares[..., 1:], own_values)


class Mlp(nn.Module):
    """Llama's."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., H] -> [..., H]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """``midlayer``."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        self._rotary: Rotary | None = None
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.hidden_norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def first(self, embedded: Tensor, hidden: Tensor, batch: Batch) -> tuple[Tensor, Memory]:
        """Step 0 over all positions: embedded [B, T, H] of the tokens behind them, hidden [B, T, H] of the target.

        -> hidden [B, S, H] of the starts, and what later steps look back on.
        """
        memory = Memory(batch.mask(batch.starts))
        x = torch.cat([self.input_layernorm(embedded), self.hidden_norm(hidden)], -1)
        self.self_attn.remember(x, self._turn(batch.positions), memory)
        turn = self._turn(pick(batch.positions, batch.starts))
        return self._finish(pick(x, batch.starts), pick(hidden, batch.starts), turn, memory), memory

    def next(self, embedded: Tensor, hidden: Tensor, positions: Tensor, memory: Memory) -> Tensor:
        """A later step of the starts: embedded, hidden [B, S, H], positions [B, S] -> hidden [B, S, H]."""
        x = torch.cat([self.input_layernorm(embedded), self.hidden_norm(hidden)], -1)
        turn = self._turn(positions)
        self.self_attn.remember(x, turn, memory)
        return self._finish(x, hidden, turn, memory)

    def _finish(self, x: Tensor, hidden: Tensor, turn: Turn, memory: Memory) -> Tensor:
        hidden = hidden + self.self_attn(x, turn, memory)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out

    def _turn(self, positions: Tensor) -> Turn:
        if self._rotary is None or self._rotary.frequencies.device != positions.device:
            shape = self.shape
            self._rotary = make_rotary(shape.head_dim, shape.rope_theta, None, str(positions.device))
        return Turn(self._rotary, positions)

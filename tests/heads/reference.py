"""Every head once more, from the papers: numpy, float64, the whole sequence at once, loops where they are clearest.

Nothing here is shared with the package. An *entry* is the pair of a hidden state and the token after it; entries are
causal in the order given. Weights are looked up by their published names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Array = np.ndarray
Names = Mapping[str, Array]


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Tensors as arrays."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder layer."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float = 10000.0
    window: int | None = None


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Zhang and Sennrich, arXiv 1910.07467."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


def linear(x: Array, weights: Names, name: str) -> Array:
    """x W^T, plus the bias where there is one."""
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def rope(x: Array, position: int, theta: float) -> Array:
    """Su et al., arXiv 2104.09864: components i, i + d/2 make a complex number, turned by position * theta^(-2i/d)."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


def attention(x: Array, positions: Array, weights: Names, prefix: str, shape: Shape) -> Array:
    """Causal grouped-query attention of all entries, x [T, width] -> [T, H]."""
    count, dim, group = len(x), shape.head_dim, shape.heads // shape.kv_heads
    q, k, v = (linear(x, weights, f"{prefix}{n}_proj").reshape(count, -1, dim) for n in "qkv")
    if f"{prefix}q_norm.weight" in weights:
        q = rms_norm(q, weights[f"{prefix}q_norm.weight"], shape.eps)
        k = rms_norm(k, weights[f"{prefix}k_norm.weight"], shape.eps)
    out = np.zeros((count, shape.heads, dim))
    for head in range(shape.heads):
        keys = [rope(k[t, head // group], positions[t], shape.theta) for t in range(count)]
        for t in range(count):
            query = rope(q[t, head], positions[t], shape.theta)
            first = 0 if shape.window is None else max(0, t - shape.window + 1)
            scores = np.array([query @ keys[s] for s in range(first, t + 1)]) / np.sqrt(dim)
            shares = np.exp(scores - scores.max())
            out[t, head] = (shares / shares.sum()) @ v[first : t + 1, head // group]
    return linear(out.reshape(count, -1), weights, f"{prefix}o_proj")


def mlp(x: Array, weights: Names, prefix: str) -> Array:
    """Shazeer, arXiv 2002.05202."""
    gated = silu(linear(x, weights, f"{prefix}gate_proj")) * linear(x, weights, f"{prefix}up_proj")
    return linear(gated, weights, f"{prefix}down_proj")


def decoder_layer(
    x: Array, positions: Array, weights: Names, prefix: str, shape: Shape, norm: str | None = "input_layernorm"
) -> Array:
    """Llama's; ``norm`` stands before attention."""
    normed = x if norm is None else rms_norm(x, weights[f"{prefix}{norm}.weight"], shape.eps)
    x = x + attention(normed, positions, weights, f"{prefix}self_attn.", shape)
    normed = rms_norm(x, weights[f"{prefix}post_attention_layernorm.weight"], shape.eps)
    return x + mlp(normed, weights, f"{prefix}mlp.")


@dataclass(frozen=True)
class Eagle3:
    """EAGLE-3 with its variants. ``norms``: names of one norm over all states, or of one for each. ``more``: norms
    before the attention of further layers."""

    weights: Names
    shape: Shape
    embedding: Array
    output: Array
    prefix: str = "midlayer."
    norms: tuple[str, ...] = ()
    norm_before_residual: bool = False
    norm_output: bool = False
    more: tuple[str, ...] = ()

    def fuse(self, taps: Array) -> Array:
        """Concatenated states -> the head's width."""
        if self.norms:
            parts = np.split(taps, len(self.norms), axis=1)
            normed = [
                rms_norm(p, self.weights[f"{n}.weight"], self.shape.eps) for n, p in zip(self.norms, parts, strict=True)
            ]
            taps = np.concatenate(normed, axis=1)
        return linear(taps, self.weights, "fc") if "fc.weight" in self.weights else taps

    def step(self, hidden: Array, tokens: Array, positions: Array) -> tuple[Array, Array]:
        """What the next step takes in place of the state, and the scores, of all entries."""
        w, eps, p = self.weights, self.shape.eps, self.prefix
        normed = rms_norm(hidden, w[f"{p}hidden_norm.weight"], eps)
        embedded = rms_norm(self.embedding[tokens], w[f"{p}input_layernorm.weight"], eps)
        both = np.concatenate([embedded, normed], axis=1)
        x = normed if self.norm_before_residual else hidden
        x = x + attention(both, positions, w, f"{p}self_attn.", self.shape)
        x = x + mlp(rms_norm(x, w[f"{p}post_attention_layernorm.weight"], eps), w, f"{p}mlp.")
        for index, norm in enumerate(self.more, 1):
            x = decoder_layer(x, positions, w, f"layers.{index}.", self.shape, norm)
        final = rms_norm(x, w["norm.weight"], eps)
        return (final if self.norm_output else x), final @ self.output.T


@dataclass(frozen=True)
class Eagle:
    """EAGLE-1 and EAGLE-2."""

    weights: Names
    shape: Shape
    embedding: Array
    output: Array
    layers: int = 1

    def fuse(self, taps: Array) -> Array:
        """The target's final state, as it is."""
        return taps

    def step(self, hidden: Array, tokens: Array, positions: Array) -> tuple[Array, Array]:
        """What the next step takes in place of the state, and the scores, of all entries."""
        x = linear(np.concatenate([self.embedding[tokens], hidden], axis=1), self.weights, "fc")
        for i in range(self.layers):
            norm = "input_layernorm" if i else None
            x = decoder_layer(x, positions, self.weights, f"layers.{i}.", self.shape, norm)
        return x, x @ self.output.T


def medusa(weights: Names, states: Array, heads: int, blocks: int, output: Array | None = None) -> list[Array]:
    """Scores of every head. ``output``: the one that all share, where they do."""
    scores = []
    for head in range(heads):
        x = states
        for block in range(blocks):
            x = x + silu(linear(x, weights, f"{head}.{block}.linear"))
        scores.append(x @ (weights[f"{head}.{blocks}.weight"] if output is None else output).T)
    return scores


def draft(
    head: Eagle3 | Eagle, taps: Array, tokens: Array, guesses: Array, first: int = 0
) -> tuple[list[Array], list[Array]]:
    """States and scores of each entry: those of the target's states, then one for each of ``guesses``, which reads the
    head's own state of the entry before. ``first``: position of the first entry."""
    hidden, tokens = head.fuse(taps), np.asarray(tokens)
    states, scores = head.step(hidden, tokens, first + np.arange(len(tokens)))
    all_states, all_scores = list(states), list(scores)
    for guess in guesses:
        hidden = np.concatenate([hidden, states[-1:]])
        tokens = np.append(tokens, guess)
        states, scores = head.step(hidden, tokens, first + np.arange(len(tokens)))
        all_states.append(states[-1])
        all_scores.append(scores[-1])
    return all_states, all_scores

"""Shapes that a model can be grown into, and where its layers then stand."""

from __future__ import annotations

from dataclasses import dataclass

from specproxy.errors import ModelLoadError

HIDDEN_ROWS = ("o_proj", "down_proj", "fc", "input_proj", "linear")
"""Projections that write the hidden width: of the layer, of EAGLE-3 and MTP before it, of Medusa."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model. ``tied``: embedding and output share a matrix. ``draft_vocab``: tokens that an EAGLE-3
    head for it guesses among; such a head is as wide as its target, as published for the 8B (the 70B's has
    another width)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    draft_vocab: int = 32000

    def matrix(self, name: str, blocks: int = 1) -> tuple[int, int]:
        """Rows and columns of projection ``name``; ``blocks``: states that its input joins."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys} | dict.fromkeys(HIDDEN_ROWS, self.hidden)
        columns = {"o_proj": queries, "down_proj": self.intermediate}
        return rows.get(name, self.intermediate), columns.get(name, blocks * self.hidden)


SHAPES: dict[str, Shape] = {
    "llama-3-8b": Shape(4096, 14336, 32, 32, 8, 128, 128256),
    "llama-3-70b": Shape(8192, 28672, 80, 64, 8, 128, 128256),
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 64, 128256, tied=True),
    "tiny-8b": Shape(448, 1568, 12, 16, 4, 128, 10240, draft_vocab=3072),
    "tiny-70b": Shape(448, 1568, 15, 32, 4, 128, 10240, draft_vocab=3072),
    "tiny-1b": Shape(256, 1024, 5, 8, 2, 64, 10240, tied=True, draft_vocab=3072),
}
"""Those of Meta's configurations, and small ones with the same query heads per KV head, head widths and MLP ratios."""


DRAFTS = {"llama-3-8b": "llama-3.2-1b", "llama-3-70b": "llama-3.2-1b", "tiny-8b": "tiny-1b", "tiny-70b": "tiny-1b"}
"""For each shape of a target that of the draft model that people pair with it."""


def find_shape(name: str) -> Shape:
    """The shape of that name. Raises ModelLoadError."""
    shape = SHAPES.get(name)
    if shape is None:
        raise ModelLoadError(f"no shape {name!r} to grow a model into; expected one of {', '.join(SHAPES)}")
    return shape


def layer_map(small: int, large: int) -> tuple[int, ...]:
    """For 0 .. ``small`` layers, how many of the grown model's ``large`` layers have run when its residual stream is
    first what it is behind that many layers of the small one.

    Layers of the small model stand at equal distances, each at the end of its share, so that a draft that skips layers
    has no larger part of the small model than of the grown one. Raises ModelLoadError where there are too few.
    """
    if not 0 < small <= large:
        raise ModelLoadError(f"a model of {small} layers cannot be grown into {large}; expected at least as many")
    return tuple(-(-count * large // small) for count in range(small + 1))

"""Verification of drafts: their rows in the step, what is sampled there, and the KV of what was accepted."""

from __future__ import annotations

from collections.abc import Sequence as Rows

from torch import Tensor

from specproxy.engine.drafts import Draft
from specproxy.engine.sequence import Sequence
from specproxy.engine.step import Step, is_chain
from specproxy.errors import BadLogits
from specproxy.kernels.paged import KVBuffers
from specproxy.sampling.sampler import Row, sample_rows

NO_TOKEN = -1
"""Sampled where there are no finite logits: no draft carries it, so the walk ends there."""


def split(sequences: Rows[Sequence], drafts: Rows[Draft], limit: int) -> list[tuple[list[Sequence], list[Draft]]]:
    """Cut a batch into steps of at most ``limit`` rows."""
    used = 0
    parts: list[tuple[list[Sequence], list[Draft]]] = []
    for s, draft in zip(sequences, drafts, strict=True):
        rows = min(len(s.pending), limit) + len(draft.tokens)
        if not parts or used + rows > limit:
            parts.append(([], []))
            used = 0
        parts[-1][0].append(s)
        parts[-1][1].append(draft)
        used += rows
    return parts


def add_rows(step: Step, s: Sequence, draft: Draft, max_rows: int, page_size: int) -> list[Row]:
    """Put a sequence's rows into the step; returns what to sample at each of them. Of committed tokens without KV at
    most ``max_rows`` take part."""
    known = len(s.tokens)
    pending = s.pending
    if len(pending) > 1:
        part = pending[:max_rows]
        whole = len(part) == len(pending)
        step.add_chain(part, s.computed, s.table, page_size, len(part) - 1 if whole else len(part))
        return [Row(s.sampler, (), known)] if whole else []
    if is_chain(draft.parents):
        tokens = draft.tokens
        step.add_chain([*pending, *tokens], s.computed, s.table, page_size, 0)
        return [Row(s.sampler, tokens[:i], known + i) for i in range(len(tokens) + 1)]
    step.add_tree(pending[0], draft.tokens, draft.parents, s.computed, s.table, page_size)
    paths: list[list[int]] = [[]]
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        paths.append([*paths[parent + 1], token])
    return [Row(s.sampler, path, known + len(path)) for path in paths]


def keep_path(kv: KVBuffers, s: Sequence, draft: Draft, replayed: int, accepted: Rows[int]) -> None:
    """The accepted path's KV becomes the sequence's: a chain's stands where it belongs, a tree's is copied down."""
    root = s.computed + replayed - 1
    if not is_chain(draft.parents):
        size, table = kv.page_size, s.table
        moves = [(root + 1 + node, root + 1 + depth) for depth, node in enumerate(accepted) if node != depth]
        if moves:
            slots = [[table[p // size] * size + p % size for p in column] for column in zip(*moves, strict=True)]
            kv.copy_slots(*slots)
    s.computed = root + 1 + len(accepted)


def sample_finite(logits: Tensor, rows: Rows[Row]) -> list[int]:
    """``sample_rows``, with NO_TOKEN where a row's logits hold NaN."""
    try:
        return sample_rows(logits, rows)
    except BadLogits as error:
        good = [i for i in range(len(rows)) if i not in error.rows]
        tokens = [NO_TOKEN] * len(rows)
        if good:
            for i, token in zip(good, sample_rows(logits[good], [rows[i] for i in good]), strict=True):
                tokens[i] = token
        return tokens

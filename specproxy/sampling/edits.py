"""What masks, penalties and bias change of logits, row by row, and how all rows of a device undergo it.

Shapes: N rows, W logits a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from specproxy.errors import InvalidRequest
from specproxy.sampling.history import Entries
from specproxy.vocabulary import SamplingParams

if TYPE_CHECKING:
    from specproxy.sampling.sampler import Row


class Edit(NamedTuple):
    """What a row's logits undergo: ids that are ``masked``; the mask of a grammar, bits of the ids that are ``allowed``
    (``None``: all are); and ``entries`` that penalties and bias change."""

    masked: np.ndarray
    allowed: np.ndarray | None
    entries: Entries


def edit_rows(x: torch.Tensor, rows: Sequence[Row]) -> None:
    """Masks, penalties and bias on logits x[N, W] float32 on any device, in place.

    Only the logits that they change visit the host, all rows' together: some hundred numbers instead of whole rows.
    """
    width = x.shape[1]
    edits = [(i, row.sampler, row.sampler.edit(row.path, width)) for i, row in enumerate(rows) if row.sampler.edits]
    masked = np.concatenate([edit.masked + i * width for i, _, edit in edits])
    touched = np.concatenate([edit.entries.ids + i * width for i, _, edit in edits])
    flat = x.view(-1)
    if len(touched):
        at = torch.from_numpy(touched).to(x.device)
        values = flat.index_select(0, at).cpu().numpy()
        parts = np.split(values, np.cumsum([len(edit.entries.ids) for *_, edit in edits])[:-1])
        changed = [sampler.changed(edit.entries, part) for (_, sampler, edit), part in zip(edits, parts, strict=True)]
        flat.index_copy_(0, at, torch.from_numpy(np.concatenate(changed)).to(x.device))
    if len(masked):  # behind the penalties: none of them makes -inf finite
        flat.index_fill_(0, torch.from_numpy(masked).to(x.device), -math.inf)
    _mask_by_grammar(x, {i: edit.allowed for i, _, edit in edits if edit.allowed is not None})


def _mask_by_grammar(x: torch.Tensor, masks: dict[int, np.ndarray]) -> None:
    """Only what the bits of their masks allow keeps its logit in these rows of x[N, W]; in place."""
    if not masks:
        return
    rows = torch.tensor(list(masks), device=x.device)
    bits = torch.from_numpy(np.stack(list(masks.values()))).to(x.device)
    free = bits[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=x.device) & 1
    x[rows] = x[rows].masked_fill(free.flatten(1)[:, : x.shape[1]] == 0, -math.inf)


def as_bools(mask: np.ndarray, width: int) -> np.ndarray:
    """Bits of a grammar's mask as bool[width]."""
    bools: np.ndarray = np.unpackbits(mask, count=width, bitorder="little").view(np.bool_)
    return bools


def enders(params: SamplingParams, model_eos: Sequence[int], vocab_size: int) -> np.ndarray:
    """Ascending ids that would end the answer, where min_tokens may forbid them. Raises InvalidRequest where they are
    all there is."""
    if params.min_tokens <= 0:
        return np.zeros(0, np.int64)
    ids = {*params.stop_token_ids, *(() if params.ignore_eos else model_eos)}
    enders = sorted(token for token in ids if 0 <= token < vocab_size)
    if len(enders) == vocab_size:
        raise InvalidRequest("min_tokens: stop_token_ids leave no token to choose", param="stop_token_ids")
    return np.array(enders, np.int64)

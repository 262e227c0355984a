"""Does a head that was just loaded guess at all? Asked of the target's own greedy text, before it may draft.

Published configurations disagree about which hidden states a head was trained on and where its norms are; the wrong
reading of a file loads without an error and guesses nothing. So every reading is tried, and one that guesses clearly
better than the nominal one is taken, loudly. A head below REFUSE of position 1 is refused.

Shapes: T tokens of a text, D width of the target, Vd ids of the head.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from specproxy.drafters.registry import Host
from specproxy.errors import ModelLoadError
from specproxy.heads.base import Head, OwnText, ParallelHead, RecurrentHead
from specproxy.heads.loading import LoadedHead
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models.machine import cache_folder

REFUSE = 0.05
"""Share of the target's tokens that a head must guess at its first position."""
CLEARLY = 0.05
"""By how much another reading must be better than the nominal one to be taken instead."""
VERSION = 1


def try_readings(name: str, loaded: LoadedHead, host: Host, least: float = REFUSE) -> Head:
    """The head under the reading that works. Raises ModelLoadError where none guesses ``least`` of the tokens."""
    rates = _known_rates(loaded, host)
    best = max(range(len(rates)), key=lambda i: rates[i])
    chosen = best if rates[best] > rates[0] + CLEARLY else 0
    if rates[chosen] < least:
        tried = "; ".join(f"{r.name} {rate:.1%}" for r, rate in zip(loaded.readings, rates, strict=True))
        raise ModelLoadError(
            f"drafters.{name}: of the target's own tokens the head guesses {rates[chosen]:.1%}, expected "
            f"{least:.0%} or more ({tried}): it was trained for another target, or on "
            "other layers; give the layers, or another head"
        )
    if chosen:
        host.progress(
            f"drafters.{name}: the file says '{loaded.readings[0]}', which guesses {rates[0]:.1%} of the target's "
            f"tokens; read as '{loaded.readings[chosen]}' it guesses {rates[chosen]:.1%} and is used so"
        )
    else:
        host.progress(f"drafters.{name}: guesses {rates[0]:.1%} of the target's tokens at its first position")
    return loaded.under(loaded.readings[chosen])


def _known_rates(loaded: LoadedHead, host: Host) -> list[float]:
    """Rates of all readings, from the cache where this head was tried on this target before."""
    facts = [VERSION, loaded.head.spec.fingerprint, host.model.spec.fingerprint, [str(r) for r in loaded.readings]]
    file = cache_folder() / f"trial-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
    known = _remembered(file)
    if len(known) == len(loaded.readings):
        return known
    texts = host.own_texts()
    rates = [agreement(loaded.under(reading), texts, host.vocab_size) for reading in loaded.readings]
    _remember(file, rates)
    return rates


def _remembered(file: Path) -> list[float]:
    """What was written there; nothing where the head was not tried yet, or the file is broken."""
    try:
        return [float(rate) for rate in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def _remember(file: Path, rates: Sequence[float]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(rates))
        partial.replace(file)
    except OSError:  # a read-only home only costs the next start the trial
        return


def agreement(head: Head, texts: Sequence[OwnText], vocab_size: int) -> float:
    """Share of the target's output tokens that are the head's first guess, everything before them being known."""
    right = total = 0
    for text in texts:
        # The guess of the token at t + 2 comes from the state at t: the first output token is not guessed.
        first, last = text.start - 1, len(text.tokens) - 2
        if last <= first:
            continue
        logits, ids = _first_guesses(head, text)[first:last], head.spec.ids
        if ids is None:
            logits = logits[:, :vocab_size]
        else:
            logits = logits.masked_fill(ids >= vocab_size, float("-inf"))
        guesses = logits.argmax(-1)
        if ids is not None:
            guesses = ids[guesses]
        expected = torch.tensor(text.tokens[first + 2 : last + 2], device=guesses.device)
        right += int((guesses == expected).sum())
        total += last - first
    return right / total if total else 0.0


def _first_guesses(head: Head, text: OwnText) -> Tensor:
    """Scores [T - 1, Vd] of the token after the next, from every position but the last."""
    taps = torch.cat([text.states[i] for i in head.spec.hidden], 1)[:-1]
    if head.spec.kind == "medusa":
        return cast(ParallelHead, head).logits(taps)[0]
    recurrent, count, device = cast(RecurrentHead, head), taps.shape[0], taps.device
    page = 64
    pages = list(range(KVBuffers.RESERVED_PAGES, KVBuffers.RESERVED_PAGES + -(-count // page)))
    kv = KVBuffers.allocate(head.spec.layers, pages[-1] + 1, page, taps.dtype, str(device))
    positions = torch.arange(count, device=device)
    plan = plan_attention([Span(0, count, 0, pages)], positions + pages[0] * page, kv, exact=False)
    ids = torch.tensor(text.tokens[1:], device=device)
    return recurrent.logits(recurrent.step(ids, recurrent.fuse(taps), positions, plan, kv).features)

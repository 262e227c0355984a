"""Short texts written by the target itself: what heads are tried on (``drafters.trial``)."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from specproxy.engine.runner import Runner
from specproxy.engine.step import Step, prefill_step
from specproxy.heads.base import OwnText
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import FINAL

OPENINGS = (
    "The history of the city begins with a small harbour on the river, where",
    "def binary_search(items, target):\n    low, high = 0, len(items) - 1\n    while",
    '{\n  "order_id": "A1043",\n  "customer": "Mei Silva",\n  "items": [\n    {\n      "product":',
    "Q: A farmer has 12 cows and buys 5 more. How many cows are there now?\nA:",
)
"""Prose, code, data, a question: no single kind decides."""
NEW_TOKENS = 64


def write_own_texts(runner: Runner, folder: Path, page_size: int) -> list[OwnText]:
    """Greedy continuations of the openings with all hidden states, on buffers of their own."""
    spec = runner.model.spec
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in OPENINGS]
    length = min(max(map(len, prompts)) + NEW_TOKENS, spec.max_len - 1)
    pages = -(-length // page_size)
    kv = KVBuffers.allocate(
        spec.layers, KVBuffers.RESERVED_PAGES + pages * len(prompts), page_size, spec.dtype, spec.device
    )
    alone = Runner(runner.model, kv, runner.rules, runner.threads)
    hidden = (*range(1, len(spec.layers)), FINAL)
    texts = []
    for i, prompt in enumerate(prompts):
        first = KVBuffers.RESERVED_PAGES + i * pages
        table = list(range(first, first + pages))
        texts.append(_write(alone, prompt[: length - 1], table, length, hidden, tokenizer.get_vocab_size()))
    return texts


def _write(
    runner: Runner, prompt: list[int], table: list[int], length: int, hidden: tuple[int, ...], vocab: int
) -> OwnText:
    tokens, rows = list(prompt), runner.rules.prefill_rows
    states: dict[int, list[torch.Tensor]] = {i: [] for i in hidden}
    logits = None
    for base in range(0, len(prompt), rows):
        end = min(base + rows, len(prompt))
        step = prefill_step(tokens, base, base, end, table, runner.kv, rows, runner.rules.trim)
        logits, taps = runner.run(step, hidden)
        for i, tap in zip(hidden, taps, strict=True):
            states[i].append(tap[: end - base])
    while logits is not None:
        tokens.append(int(logits[0, :vocab].argmax()))
        if len(tokens) >= length:
            break
        step = Step("decode")
        step.add_chain(tokens[-1:], len(tokens) - 1, table, runner.kv.page_size, 0)
        logits, taps = runner.run(step, hidden)
        for i, tap in zip(hidden, taps, strict=True):
            states[i].append(tap[:1])
    last = torch.zeros(1, runner.model.spec.hidden_size, dtype=runner.model.spec.dtype, device=runner.model.spec.device)
    return OwnText(tokens, len(prompt), {i: torch.cat([*parts, last]) for i, parts in states.items()})

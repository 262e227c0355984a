"""How far the engine's logits and the stock path's may be apart: measured once for each kind of numerics, and kept.

The plain arm: the engine continues the openings greedily, one token a step, and the stock path is led over the same
tokens. eps is the largest difference of any raw logit at any of these positions, times ``SAFETY``. To be taken for a
hard mismatch without a fault, two logits that nearly tie would both have to be off, in opposite directions, by as much
more than anything among some millions of logits. How often the two arms disagree about a token is kept too: that many
explained near-ties are normal, and more are a fault that hides among them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor

from specproxy.audit.job import AuditTarget
from specproxy.audit.stock import CHUNK, StockPass
from specproxy.bundle import AuditBundle, Tolerance
from specproxy.engine.numerics import numerics_fingerprint
from specproxy.engine.own_texts import NEW_TOKENS, OPENINGS
from specproxy.engine.runner import Runner
from specproxy.engine.step import Step, prefill_step
from specproxy.kernels.paged import KVBuffers
from specproxy.models.machine import cache_folder
from specproxy.sampling.sampler import Row, Sampler, sample_rows
from specproxy.vocabulary import SamplingParams

SAFETY = 1.5
SEEDS = 8
"""Draws of each position at temperature 1, of which the disagreements are counted."""

AUDIT_ROWS = 1
"""The stock path runs on the threads of a step of so many rows: of the narrowest. It is hundreds of small parallel
regions, each of which waits for a thread that the server, or a neighbour, has taken the core from: on two cores a chunk
of 64 tokens took 20 ms on both, if both were free, and 160 to 200 if not, against 31 on one (AMD EPYC Zen 4)."""

TOLERANCE_VERSION = 2
"""Part of the file's name: raise it when what is measured changes."""

Measurement = Generator[None, None, Tolerance]


def known_tolerance(runner: Runner) -> Tolerance | None:
    """What was measured before on this machine, for this model, path and threads."""
    try:
        return msgspec.json.decode(_file(runner).read_bytes(), type=Tolerance)
    except (OSError, msgspec.MsgspecError):
        return None


def measure_tolerance(runner: Runner, folder: Path, vocab_size: int, page_size: int) -> Measurement:
    """Measure it in small pieces, on buffers of its own: a step of the engine or a chunk of the stock path between two
    yields. ``folder`` has the tokenizer; ``vocab_size``: ids that it knows."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    largest, squares, greedy, sampled = 0.0, 0.0, [0, 0], [0, 0]
    for text in OPENINGS:
        prompt = tokenizer.encode(text).ids[: runner.model.spec.max_len - 2]
        tokens, ours = yield from _write(runner, prompt, page_size, vocab_size)
        stock = yield from _follow(runner, tokens[:-1], len(prompt) - 1, vocab_size)
        largest = max(largest, float((ours - stock).abs().max()))
        squares += _leading_error(ours, stock)
        yield
        _compare(ours, stock, len(prompt), vocab_size, 0.0, 1, greedy)
        yield
        _compare(ours, stock, len(prompt), vocab_size, 1.0, SEEDS, sampled)
        yield
    spread = math.sqrt(squares / greedy[1])
    found = Tolerance(SAFETY * largest, largest, spread, greedy[1], greedy[0], greedy[1], sampled[0], sampled[1])
    _remember(_file(runner), found)
    return found


def measure_at_once(measurement: Measurement) -> Tolerance:
    """Run a measurement to its end."""
    while True:
        try:
            next(measurement)
        except StopIteration as end:
            found: Tolerance = end.value
            return found


def drawn_otherwise(target: AuditTarget, bundle: AuditBundle, chunk: int) -> int:
    """How many tokens of an answer the stock model draws otherwise in chunks of ``chunk`` than in those of an audit:
    what its dtype leaves open, with nothing of the engine's in it."""
    ids, start, drawn = [*bundle.prompt, *bundle.output[:-1]], len(bundle.prompt), []
    params, device = bundle.params, torch.device("cpu")
    for length in (CHUNK, chunk):
        stock, logits = StockPass(target.stock, ids, start - 1, length), []
        while not stock.done:
            logits.append(stock.step()[:, : target.vocab_size])
        grammar = None if target.grammars is None else target.grammars.matcher(params)
        eos = tuple(target.eos)
        sampler = Sampler(params, bundle.seed, bundle.choice, bundle.prompt, target.vocab_size, eos, device, grammar)
        rows = [Row(sampler, bundle.output[:i], start + i) for i in range(len(bundle.output))]
        drawn.append(sample_rows(torch.cat(logits), rows))
    return sum(one != other for one, other in zip(*drawn, strict=True))


def _write(
    runner: Runner, prompt: list[int], page_size: int, vocab_size: int
) -> Generator[None, None, tuple[list[int], Tensor]]:
    """The engine's greedy continuation: all tokens, and the logits [N, V] of each new one."""
    spec, tokens = runner.model.spec, list(prompt)
    length = min(len(prompt) + NEW_TOKENS, spec.max_len - 1)
    pages = -(-length // page_size)
    table = list(range(KVBuffers.RESERVED_PAGES, KVBuffers.RESERVED_PAGES + pages))
    kv = KVBuffers.allocate(spec.layers, KVBuffers.RESERVED_PAGES + pages, page_size, spec.dtype, spec.device)
    alone = Runner(runner.model, kv, runner.rules, runner.threads)
    rows, chunk = [], runner.rules.prefill_rows
    logits: Tensor | None = None
    for base in range(0, len(prompt), chunk):
        end = min(base + chunk, len(prompt))
        logits, _ = alone.run(prefill_step(tokens, base, base, end, table, kv, chunk, runner.rules.trim))
        yield
    while logits is not None:
        # A copy: a captured step writes its logits where the last ones were.
        rows.append(logits[0, :vocab_size].float().cpu().clone())
        tokens.append(int(rows[-1].argmax()))
        if len(tokens) >= length:
            break
        step = Step("decode")
        step.add_chain(tokens[-1:], len(tokens) - 1, table, page_size, 0)
        logits, _ = alone.run(step)
        yield
    return tokens, torch.stack(rows)


def _follow(runner: Runner, tokens: list[int], first: int, vocab_size: int) -> Generator[None, None, Tensor]:
    """The stock path's logits [N, V] behind the tokens from ``first`` on."""
    stock, rows = StockPass(runner.model.stock, tokens, first), []
    while not stock.done:
        runner.threads.enter(AUDIT_ROWS)
        rows.append(stock.step()[:, :vocab_size])
        yield
    return torch.cat(rows)


def _leading_error(ours: Tensor, stock: Tensor) -> float:
    """Sum over rows of the squared error of the distance between the two leading logits."""
    leading = stock.topk(2).indices
    distances = [rows.gather(1, leading).double() @ torch.tensor([1.0, -1.0]).double() for rows in (ours, stock)]
    return float((distances[0] - distances[1]).square().sum())


def _compare(
    ours: Tensor, stock: Tensor, num_prompt: int, vocab: int, temperature: float, seeds: int, counts: list[int]
) -> None:
    """Add to ``counts`` the tokens that differ between the arms, and all of them."""
    params = SamplingParams(temperature=temperature)
    for seed in range(seeds):
        sampler = Sampler(params, seed, 0, (), vocab, (), torch.device("cpu"))
        rows = [Row(sampler, (), num_prompt + i) for i in range(len(ours))]
        pairs = list(zip(sample_rows(ours, rows), sample_rows(stock, rows), strict=True))
        counts[0] += sum(one != other for one, other in pairs)
        counts[1] += len(pairs)


def _file(runner: Runner) -> Path:
    name = f"tolerance-{TOLERANCE_VERSION}-{numerics_fingerprint(runner.model, runner.threads)}.json"
    return cache_folder() / name


def _remember(file: Path, found: Tolerance) -> None:
    """Keep it; a read-only home only costs the next start a second."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_bytes(msgspec.json.encode(found))
        partial.replace(file)
    except OSError:
        return

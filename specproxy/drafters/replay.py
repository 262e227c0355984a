"""A drafter for tests: it knows the answer, and errs on purpose, by a seed.

Given what a run without speculation produced, it proposes those tokens with errors so that every accepted length from
0 to K and, in trees, every branch comes to pass: the right token stands at any rank among its siblings, and right
tokens also hang below wrong ones, where a walk that confuses ancestors would accept them. It drafts on past the end of
the answer, so that answers end inside a burst.

Scripts are a JSON file (or a folder of them, merged) of the form ``{prompt_key(prompt): [output, ...]}``, token ids;
of several outputs (choices, seeds) the one that agrees with what is committed is taken. A prompt without a script
falls back to the submission's prediction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from specproxy.drafters.base import ROOT, DraftBatch, DraftContext, DraftRow, Memory, Needs
from specproxy.drafters.registry import Host, Options, fingerprint, read_options
from specproxy.errors import ConfigError
from specproxy.vocabulary import MAX_TREE_NODES

Scripts = Mapping[str, Sequence[Sequence[int]]]


class ReplayOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``path``: scripts (empty: predictions only). ``seed``: of the errors. ``errors``: whether to err at all.

    ``shape``: what is drafted; ``mixed`` changes between the two from step to step. ``width``: most siblings in trees.
    """

    path: str = ""
    seed: int = 0
    errors: bool = True
    shape: Literal["chain", "tree", "mixed"] = "chain"
    width: int = 3
    max_k: int = MAX_TREE_NODES

    def __post_init__(self) -> None:
        if not 1 <= self.max_k <= MAX_TREE_NODES:
            raise ValueError(f"expected max_k from 1 to {MAX_TREE_NODES}, got {self.max_k}")
        if self.width < 1:
            raise ValueError(f"expected width of at least 1, got {self.width}")


@dataclass
class ReplayState:
    """``scripts``: those that agree with the first ``seen`` output tokens."""

    key: str
    scripts: list[Sequence[int]]
    seen: int = 0


class ReplayDrafter:
    """See the module's text."""

    def __init__(self, name: str, options: ReplayOptions, scripts: Scripts, vocab_size: int) -> None:
        self.name = name
        self.fingerprint = fingerprint("replay", msgspec.structs.asdict(options))
        self.needs = Needs(max_k=options.max_k)
        self._options = options
        self._scripts = scripts
        self._vocab_size = vocab_size

    def prefill(self, ctx: DraftContext) -> None:
        """Find the scripts of each prompt."""
        for row in ctx.rows:
            row.state = None
            self._state(row)

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """Draft the script from here on with errors; no guess where no script agrees with the output."""
        for r, row in enumerate(ctx.rows):
            out.n[r] = 0
            out.bucket[r] = 0
            state = self._state(row)
            k = min(row.k, self.needs.max_k, out.tokens.shape[1])
            if not state.scripts or k <= 0:
                continue
            right = list(state.scripts[0][state.seen : state.seen + k])
            rng = Random(f"{self._options.seed}/{state.key}/{state.seen}")
            right += [rng.randrange(self._vocab_size) for _ in range(k - len(right))]
            tokens, parents = self._draft(right, k, rng)
            out.tokens[r, :k] = tokens
            out.parents[r, :k] = parents
            out.n[r] = k

    def commit(self, ctx: DraftContext) -> None:
        """Drop the scripts that the output has left."""
        for row in ctx.rows:
            self._state(row)

    def release(self, seq_id: str) -> None:
        """Nothing to do: the memory goes with ``DraftRow.state``."""

    def memory(self) -> Memory:
        """Neither weights nor KV."""
        return Memory()

    def _state(self, row: DraftRow) -> ReplayState:
        state = row.state
        if not isinstance(state, ReplayState):
            key = prompt_key(row.tokens[: row.num_prompt])
            scripts = list(self._scripts.get(key, ()))
            if not scripts and row.prediction:
                scripts.append(row.prediction)
            state = ReplayState(key, scripts)
            row.state = state
        new = list(row.tokens[row.num_prompt + state.seen :])
        if new:
            end = state.seen + len(new)
            state.scripts = [script for script in state.scripts if list(script[state.seen : end]) == new]
            state.seen = end
        return state

    def _draft(self, right: list[int], k: int, rng: Random) -> tuple[list[int], list[int]]:
        """Tokens and parents of k nodes, of which a drawn number agrees with ``right`` (k tokens)."""
        good = rng.randint(0, k) if self._options.errors else k
        shape = self._options.shape
        if shape == "tree" or (shape == "mixed" and rng.random() < 0.5):
            # Siblings take nodes from depth, so great depths are often out of reach: draw small ones more often.
            return self._tree(right, rng.randint(0, good) if self._options.errors else k, k, rng)
        tokens = list(right)
        if good < k:
            tokens[good] = self._wrong({right[good]}, rng)
        return tokens, list(range(-1, k - 1))

    def _tree(self, right: list[int], good: int, k: int, rng: Random) -> tuple[list[int], list[int]]:
        """Nodes grown mostly along the right path, which leaves the tree at depth ``good`` if the nodes last."""
        tokens: list[int] = []
        parents: list[int] = []
        side: list[tuple[int, int]] = []
        trunk: tuple[int, int] | None = (ROOT, 0)
        while len(tokens) < k:
            on_path = trunk is not None and (not side or rng.random() < 0.75)
            if on_path and trunk is not None:
                parent, depth = trunk
                trunk = None
            else:
                parent, depth = side.pop(rng.randrange(len(side)))
            width = rng.randint(1, self._options.width)
            hit = rng.randrange(width) if depth < len(right) and (depth < good or not on_path) else -1
            used = {right[depth]} if depth < len(right) else set()
            for rank in range(min(width, k - len(tokens), self._vocab_size - 1)):
                token = right[depth] if rank == hit else self._wrong(used, rng)
                used.add(token)
                node = (len(tokens), depth + 1)
                if on_path and rank == hit:
                    trunk = node
                else:
                    side.append(node)
                tokens.append(token)
                parents.append(parent)
        return tokens, parents

    def _wrong(self, used: set[int], rng: Random) -> int:
        """Any id outside ``used``, which leaves at least one."""
        token = rng.randrange(self._vocab_size)
        while token in used:
            token = (token + 1) % self._vocab_size
        return token


def prompt_key(prompt: Sequence[int]) -> str:
    """The name of a prompt's scripts: SHA-256 of its ids as little-endian 64-bit integers."""
    return hashlib.sha256(np.asarray(prompt, "<i8").tobytes()).hexdigest()


def read_scripts(path: Path) -> dict[str, list[list[int]]]:
    """Scripts of a file, or of all ``*.json`` of a folder; outputs of equal prompts are joined.

    Raises OSError where it cannot be read, msgspec.MsgspecError where it is not of the form given above.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    scripts: dict[str, list[list[int]]] = {}
    for file in files:
        for key, outputs in msgspec.json.decode(file.read_bytes(), type=dict[str, list[list[int]]]).items():
            scripts.setdefault(key, []).extend(outputs)
    return scripts


def write_scripts(path: Path, runs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """Write (prompt, output) pairs to the file ``path`` as scripts."""
    scripts: dict[str, list[list[int]]] = {}
    for prompt, output in runs:
        scripts.setdefault(prompt_key(prompt), []).append(list(output))
    path.write_text(json.dumps(scripts))


def load(name: str, options: Options, host: Host) -> ReplayDrafter:
    """Registry loader. Raises ConfigError where the scripts cannot be read."""
    read = read_options(ReplayOptions, name, "replay", options)
    try:
        scripts = read_scripts(Path(read.path)) if read.path else {}
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"drafters.{name}: no scripts in {read.path}: {error}") from None
    return ReplayDrafter(name, read, scripts, host.vocab_size)

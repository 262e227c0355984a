"""How transformers' own ``generate`` does on the same prompts: plain, with an assistant model, with prompt lookup, and
on a GPU compiled over a static cache.

Same weights, dtype and device, batch 1, greedy, all cores (or the configured threads), its own generation defaults. It
runs in this process, while the servers of the other arms idle. torch and transformers are imported by ``load`` only.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from specproxy.bench.arms import Arm
from specproxy.bench.client import Answer
from specproxy.bench.records import Record
from specproxy.errors import StartError

PLAIN = "hf"
ASSISTED = "hf-assistant"
LOOKUP = "hf-lookup"
COMPILED = "hf-compiled"
LOOKUP_TOKENS = 10
"""Tokens that prompt lookup proposes: the value of transformers' own documentation."""


STATIC_TOKENS = 2048
"""Room of the static cache: as much for every answer, so that the decoding step is compiled once, while warming up."""


class Stock(NamedTuple):
    """A model's folder, and the large shape that it is grown into, if any."""

    folder: Path
    grow: str = ""


def peer_arms(*, assistant: bool, compiled: bool = False) -> list[Arm]:
    """The arms that peers add to a run."""
    names = [PLAIN, *([ASSISTED] if assistant else []), LOOKUP, *([COMPILED] if compiled else [])]
    return [Arm(name, None, peer=True) for name in names]


class Peer(Protocol):
    """Another library that answers the same prompts."""

    async def answer(self, record: Record, arm: Arm, *, max_tokens: int) -> Answer:
        """One greedy answer of the way that ``arm`` names; what went wrong is its error."""
        ...


class Peers:
    """A target, and perhaps an assistant, held by transformers. ``load`` makes one; ``real_vocab``: ids from there on
    are padding of a grown model and never chosen, by target or assistant."""

    def __init__(self, target: Any, assistant: Any, tokenizer: Any, real_vocab: int | None = None) -> None:
        self._target = target
        self._assistant = assistant
        self._tokenizer = tokenizer
        self._real_vocab = real_vocab
        self._cache: Any = None

    @classmethod
    def load(cls, target: Stock, assistant: Stock | None, *, dtype: str, threads: int, device: str = "cpu") -> Peers:
        """Read the models from their folders. ``dtype`` as transformers names it, ``auto``: the checkpoint's.

        Raises StartError when they cannot be loaded.
        """
        import torch
        from transformers import AutoTokenizer

        torch.set_num_threads(threads)
        model, real_vocab = _load(target, dtype, device)
        helper = None if assistant is None else _load(assistant, dtype, device)[0]
        return cls(model, helper, AutoTokenizer.from_pretrained(target.folder), real_vocab)

    async def answer(self, record: Record, arm: Arm, *, max_tokens: int) -> Answer:
        """One greedy answer. Its time runs from the ready prompt ids to the last token's id.

        The caller's thread does it, and nothing else meanwhile: compiled code keeps its captured graphs by thread.
        """
        return self._generate(record, arm.name, max_tokens)

    def _generate(self, record: Record, kind: str, max_tokens: int) -> Answer:
        import torch

        inputs = self._tokenizer.apply_chat_template(
            record.body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._target.device)
        prompt = inputs["input_ids"].shape[1]
        if kind == COMPILED and prompt + max_tokens > STATIC_TOKENS:
            return Answer(error=f"{prompt} tokens and {max_tokens} more do not fit a static cache of {STATIC_TOKENS}")
        first = _FirstToken()
        # Compiled code writes into a cache that outlives the call, which inference mode would make unwritable.
        with torch.inference_mode(kind != COMPILED):
            options = self._options(kind)
            started = time.perf_counter()
            output = self._target.generate(
                **inputs, do_sample=False, max_new_tokens=max_tokens, streamer=first, **options
            )
            ids = output[0, prompt:].tolist()
            total = time.perf_counter() - started
        ended = bool(ids) and ids[-1] in self._end_ids()
        return Answer(
            tokens=len(ids),
            token_ids=ids,
            text=self._tokenizer.decode(ids, skip_special_tokens=True),
            finish_reason="stop" if ended else "length",
            ttft_s=(first.at or started + total) - started,
            total_s=total,
        )

    def _options(self, kind: str) -> dict[str, Any]:
        """What makes ``generate`` answer the way ``kind``."""
        options: dict[str, Any] = {}
        if self._real_vocab is not None:
            from specproxy.models.grown.target import RealIds

            options["logits_processor"] = [RealIds(self._real_vocab)]
        if kind == ASSISTED:
            options["assistant_model"] = self._assistant
        elif kind == LOOKUP:
            options["prompt_lookup_num_tokens"] = LOOKUP_TOKENS
        elif kind == COMPILED:
            options["past_key_values"] = self._static_cache()
        return options

    def _static_cache(self) -> Any:
        """The one cache, emptied: where it lies is part of what was captured. generate compiles its step over it."""
        from transformers import StaticCache

        if self._cache is None:
            self._cache = StaticCache(config=self._target.config, max_cache_len=STATIC_TOKENS)
        else:
            self._cache.reset()
        return self._cache

    def _end_ids(self) -> list[int]:
        end = self._target.generation_config.eos_token_id
        return end if isinstance(end, list) else [end]


def _load(stock: Stock, dtype: str, device: str) -> tuple[Any, int | None]:
    """transformers' model on its device, and where the ids of a grown one end. Raises StartError."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(stock.folder, dtype=dtype).eval().to(device)
    except (OSError, ValueError) as error:
        raise StartError(f"{stock.folder}: transformers cannot load it: {error}") from None
    if not stock.grow:
        return model, None
    from specproxy.models.grown.target import grown_stock

    grown = grown_stock(model, stock.folder, stock.grow)
    return grown.model, grown.real_vocab


class _FirstToken:
    """A streamer that only notes when the first token came; ``generate`` hands it the prompt before."""

    def __init__(self) -> None:
        self._puts = 0
        self.at: float | None = None

    def put(self, ids: Any) -> None:
        """Ids as they come: the prompt, then what each step produced."""
        self._puts += 1
        if self._puts == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        """Nothing is held back."""

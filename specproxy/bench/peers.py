"""How transformers' own ``generate`` does on the same prompts: plain, with an assistant model, with prompt lookup.

Same weights and dtype, batch 1, greedy, all cores (or the configured threads), its own generation defaults. It
runs in this process, while the servers of the other arms idle. torch and transformers are imported by ``load`` only.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Protocol

from specproxy.bench.arms import Arm
from specproxy.bench.client import Answer
from specproxy.bench.records import Record
from specproxy.errors import StartError

PLAIN = "hf"
ASSISTED = "hf-assistant"
LOOKUP = "hf-lookup"
LOOKUP_TOKENS = 10
"""Tokens that prompt lookup proposes: the value of transformers' own documentation."""


def peer_arms(*, assistant: bool) -> list[Arm]:
    """The arms that peers add to a run."""
    names = [PLAIN, *([ASSISTED] if assistant else []), LOOKUP]
    return [Arm(name, None, peer=True) for name in names]


class Peer(Protocol):
    """Another library that answers the same prompts."""

    async def answer(self, record: Record, arm: Arm, *, max_tokens: int) -> Answer:
        """One greedy answer of the way that ``arm`` names; what went wrong is its error."""
        ...


class Peers:
    """A target, and perhaps an assistant, held by transformers. ``load`` makes one."""

    def __init__(self, target: Any, assistant: Any, tokenizer: Any) -> None:
        self._target = target
        self._assistant = assistant
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, model: Path, assistant: Path | None, *, dtype: str, threads: int) -> Peers:
        """Read the models from their folders. ``dtype`` as transformers names it, ``auto``: the checkpoint's.

        Raises StartError when they cannot be loaded.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        try:
            target = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
            helper = None
            if assistant is not None:
                helper = AutoModelForCausalLM.from_pretrained(assistant, dtype=dtype).eval()
            return cls(target, helper, AutoTokenizer.from_pretrained(model))
        except (OSError, ValueError) as error:
            raise StartError(f"{model}: transformers cannot load it: {error}") from None

    async def answer(self, record: Record, arm: Arm, *, max_tokens: int) -> Answer:
        """One greedy answer, in a thread. Its time runs from the ready prompt ids to the last token's id."""
        return await asyncio.to_thread(self._generate, record, arm.name, max_tokens)

    def _generate(self, record: Record, kind: str, max_tokens: int) -> Answer:
        import torch

        inputs = self._tokenizer.apply_chat_template(
            record.body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        extra: dict[str, Any] = {}
        if kind == ASSISTED:
            extra["assistant_model"] = self._assistant
        elif kind == LOOKUP:
            extra["prompt_lookup_num_tokens"] = LOOKUP_TOKENS
        first = _FirstToken()
        started = time.perf_counter()
        with torch.inference_mode():
            output = self._target.generate(
                **inputs, do_sample=False, max_new_tokens=max_tokens, streamer=first, **extra
            )
        total = time.perf_counter() - started
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        ended = bool(ids) and ids[-1] in self._end_ids()
        return Answer(
            tokens=len(ids),
            token_ids=ids,
            text=self._tokenizer.decode(ids, skip_special_tokens=True),
            finish_reason="stop" if ended else "length",
            ttft_s=(first.at or started + total) - started,
            total_s=total,
        )

    def _end_ids(self) -> list[int]:
        end = self._target.generation_config.eos_token_id
        return end if isinstance(end, list) else [end]


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

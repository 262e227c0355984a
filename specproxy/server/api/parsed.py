"""A request after parsing: validated, tokenised, ready to become submissions and an answer."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from specproxy.vocabulary import MAX_SEED, Decision, SamplingParams, Submission

if TYPE_CHECKING:
    from specproxy.server.api.answer import Answer, AnswerMeta
    from specproxy.server.api.context import ApiContext
    from specproxy.server.api.tools import Reading
    from specproxy.structured.schemas import AnswerSchema

Endpoint = Literal["chat", "completions"]


def draw_seed() -> int:
    """A seed for a request that brought none: below MAX_SEED, so that every client reads back the same integer."""
    return secrets.randbelow(MAX_SEED)


@dataclass(frozen=True)
class Prompt:
    """One prompt. ``text`` is what ``echo`` repeats. ``max_tokens`` is what the request, or the context, allows it."""

    ids: list[int]
    text: str
    max_tokens: int


@dataclass(frozen=True)
class ParsedRequest:
    """Everything a handler needs of one body.

    ``model`` is the served name (aliases resolved), ``body`` the JSON object as sent (policy facts are read from it).
    ``max_tokens`` is what the client asked for, ``None`` when it left it to us. ``seed`` is ``None`` when the client
    gave none; else already below MAX_SEED (Python's ``seed % 2**53``). ``params.max_tokens`` is meaningless here: every
    prompt has its own. ``schema``: what the answer has to be; ``reading``: how calls and thoughts are told from its
    text, ``None`` where it is all text.
    ``unknown`` lists the top-level fields that nothing knows, for the log.
    """

    endpoint: Endpoint
    context: ApiContext
    model: str
    body: dict[str, Any]
    prompts: tuple[Prompt, ...]
    params: SamplingParams
    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    prediction: list[int] = field(default_factory=list)
    echo: bool = False
    return_token_ids: bool = False
    cache_salt: str = ""
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    schema: AnswerSchema | None = None
    reading: Reading | None = None
    unknown: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The path as policies match it."""
        return "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once whatever ``n`` is."""
        return sum(len(prompt.ids) for prompt in self.prompts)

    @property
    def num_choices(self) -> int:
        """Choices of the answer: ``n`` for each prompt."""
        return self.n * len(self.prompts)

    def submissions(
        self, decision: Decision, seed: int, *, salt: str, id_prefix: str, default_max_tokens: int | None = None
    ) -> list[Submission]:
        """One submission per choice, in the order of the answer's choices: prompt by prompt, ``n`` each.

        ``salt`` separates tenants' cached pages. ``default_max_tokens`` bounds answers whose length the client left
        open; one it asked for is never changed.
        """
        bound = default_max_tokens if self.max_tokens is None else None
        made: list[Submission] = []
        for prompt in self.prompts:
            limit = prompt.max_tokens if bound is None else min(prompt.max_tokens, bound)
            first = Submission(
                id=f"{id_prefix}-{len(made)}",
                prompt=prompt.ids,
                seed=seed,
                params=replace(self.params, max_tokens=limit),
                decision=decision,
                prediction=self.prediction,
                salt=f"{salt}\x00{self.cache_salt}" if self.cache_salt else salt,
            )
            start = len(made)
            made.append(first)
            made.extend(replace(first, id=f"{id_prefix}-{start + i}", choice=i) for i in range(1, self.n))
        return made

    def answer(self, meta: AnswerMeta) -> Answer:
        """The answer to build from the engine's deltas."""
        from specproxy.server.api.answer import Answer

        return Answer(self, meta)

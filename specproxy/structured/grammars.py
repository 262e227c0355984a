"""Grammars over a model's tokens: compiled once, cached, and followed token by token.

A grammar is text in one of llguidance's forms (a Lark grammar, or JSON that holds a schema). What may follow is a
function of the grammar and the answer's tokens alone, drafted ones included; so it is the same with speculation and
without, after a resume, and in an audit. Illegal tokens never take part in sampling; whether the answer may end is the
grammar's to say.

Shapes: V ids that the tokenizer knows, masks as bits, lowest first, uint8[ceil(V / 32) * 4].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from specproxy.errors import InvalidRequest
from specproxy.vocabulary import SamplingParams

MAX_CACHED = 256
"""Grammars that stay compiled. One of an ordinary schema takes some 100 kB."""

LIMITS = LLParserLimits(max_grammar_size=100_000, verbose_errors=False)
"""What compiling may cost, and a mask. By llguidance's figures its other limits stop either after some 20 ms; with half
of them two of the 360 schemas of a JSONSchemaBench sample (long patterns of words) fail in the middle of an answer."""


class Matcher:
    """A grammar behind the committed tokens of one answer; paths of drafted tokens are followed and taken back.

    ``fault``: why it cannot say what may follow; empty where it can. Behind the end of the answer, and behind a token
    that the grammar does not have there, nothing is known and nothing masked: drafts are cut before either.
    """

    def __init__(self, compiled: LLMatcher, vocab_size: int, eos: Sequence[int]) -> None:
        """``compiled`` stands at the grammar's beginning and is copied. ``eos``: ids that end an answer."""
        self.fault = ""
        self._compiled = compiled
        self._vocab_size = vocab_size
        self._eos = tuple(token for token in eos if 0 <= token < vocab_size)
        self._inner = compiled.deep_copy()
        self._committed: list[int] = []
        self._beyond = 0
        self._path: list[int] = []
        self._masks: dict[tuple[int, ...], np.ndarray | None] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Matcher:
        """An independent matcher behind the same tokens."""
        other = Matcher(self._compiled, self._vocab_size, self._eos)
        other.advance([*self._committed, *[-1] * self._beyond])
        return other

    def advance(self, tokens: Sequence[int]) -> None:
        """These tokens are committed."""
        self._masks.clear()
        known = 0 if self._beyond else self._go(tokens)
        self._committed += tokens[:known]
        self._beyond += len(tokens) - known
        self._path.clear()

    def rollback(self, n: int) -> None:
        """Take back the last n committed tokens."""
        self._masks.clear()
        unknown = min(n, self._beyond)
        self._beyond -= unknown
        if n > unknown:
            del self._committed[unknown - n :]
            self._restart()

    def allowed(self, path: Sequence[int]) -> np.ndarray | None:
        """The mask behind the drafted ``path``; ``None`` where nothing is masked. No bit is set where the grammar
        failed (``fault``)."""
        key = tuple(path)
        if key not in self._masks:
            self._masks[key] = self._mask(key)
        return self._masks[key]

    def allows(self, path: Sequence[int], token: int) -> bool:
        """Whether ``token`` may follow ``path``; nothing may behind the end, or where the grammar failed."""
        mask = self.allowed(path)
        return mask is not None and 0 <= token < self._vocab_size and bool(mask[token >> 3] >> (token & 7) & 1)

    def forced(self, limit: int, path: Sequence[int] = ()) -> list[int]:
        """What comes behind ``path`` whatever the model says, as its tokenizer would write it: at most ``limit``
        tokens. The model may still write the same text in other tokens."""
        if self._beyond or limit < 1 or self._go(path) != len(path):
            return []
        tokens = list(self._inner.compute_ff_tokens())[:limit]
        whole = [*path, *tokens]
        if len(tokens) < limit and self._go(whole) == len(whole) and self._inner.is_stopped():
            tokens += self._eos[:1]
        return [] if self._failed() else tokens

    def _mask(self, path: tuple[int, ...]) -> np.ndarray | None:
        if self._beyond or self._go(path) < len(path):
            return None
        mask = np.frombuffer(self._inner.compute_bitmask(), np.uint8).copy()
        if self._failed():
            return np.zeros_like(mask)
        ends = self._inner.is_accepting()
        for token in self._eos:
            bit = np.uint8(1 << (token & 7))
            mask[token >> 3] = mask[token >> 3] | bit if ends else mask[token >> 3] & ~bit
        return mask

    def _go(self, path: Sequence[int]) -> int:
        """Stand behind ``path``, or as much of it as is legal and not its end: how much that is."""
        if self._inner.is_error():
            self._restart()
        same = 0
        for mine, wanted in zip(self._path, path, strict=False):
            if mine != wanted:
                break
            same += 1
        if same < len(self._path):
            self._inner.rollback(len(self._path) - same)
            del self._path[same:]
        rest = []
        for token in path[same:]:
            if token in self._eos or not 0 <= token < self._vocab_size:
                break
            rest.append(token)
        taken = self._inner.try_consume_tokens(rest) if rest else 0
        self._path += rest[:taken]
        return len(self._path)

    def _failed(self) -> bool:
        """Whether a limit was reached; what was drafted then must not be why."""
        if not self._inner.is_error():
            return False
        self.fault = f"its grammar cannot be followed any further: {self._inner.get_error()}"
        return True

    def _restart(self) -> None:
        """Stand behind the committed tokens again, by taking them in anew."""
        self._inner = self._compiled.deep_copy()
        self._inner.try_consume_tokens(self._committed)
        self._path.clear()


class Grammars:
    """The grammars of one model's vocabulary; those used last stay compiled."""

    def __init__(
        self, tokenizer_file: Path, vocab_size: int, eos: Sequence[int], limits: LLParserLimits = LIMITS
    ) -> None:
        """``tokenizer_file``: Hugging Face's tokenizer.json; it is read when the first grammar is wanted. ``eos``: ids
        that end an answer."""
        self._file = tokenizer_file
        self._vocab_size = vocab_size
        self._eos = tuple(token for token in eos if 0 <= token < vocab_size)
        self._limits = limits
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, params: SamplingParams) -> Matcher | None:
        """The grammar of a request at its beginning; ``None`` where there is none.

        Raises InvalidRequest where it cannot be compiled, or something beside it contradicts it.
        """
        if not params.grammar:
            return None
        refuse_beside_grammar(params)
        compiled = self._compiled.get(params.grammar)
        if compiled is None:
            compiled = self._compile(params.grammar)
            while len(self._compiled) >= MAX_CACHED:
                self._compiled.popitem(last=False)
            self._compiled[params.grammar] = compiled
        self._compiled.move_to_end(params.grammar)
        return Matcher(compiled, self._vocab_size, self._eos)

    def _compile(self, grammar: str) -> LLMatcher:
        if not self._eos:
            raise InvalidRequest("this model has no end-of-sequence token, so no grammar can end its answer")
        if self._tokenizer is None:
            text = self._file.read_text(encoding="utf-8")
            self._tokenizer = LLTokenizer(text, n_vocab=self._vocab_size, eos_token=list(self._eos))
        compiled = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if compiled.is_error():
            # A schema is JSON, a grammar with calls is not.
            param = "response_format" if grammar.startswith("{") else "tools"
            raise InvalidRequest(f"the grammar cannot be compiled: {compiled.get_error()}", param=param)
        return compiled


def grammar_fault(grammar: str, limits: LLParserLimits = LIMITS) -> str:
    """What is wrong with a grammar whatever the vocabulary; empty where nothing is."""
    failed, said = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits)
    return str(said[0]) if failed else ""


def refuse_beside_grammar(params: SamplingParams) -> None:
    """Raise InvalidRequest for parameters that a grammar cannot be followed with: it alone says when an answer ends."""
    for name, given in (("min_tokens", params.min_tokens > 0), ("ignore_eos", params.ignore_eos)):
        if given:
            raise InvalidRequest(
                f"`{name}` cannot be combined with `response_format` or tools: the answer ends where its grammar does; "
                "leave one of them out",
                param=name,
            )

"""Faults put in on purpose, so that tests can show that audits and the gate find them. Never for serving.

They are wanted by an environment variable whose name no setting, flag or file leads to, and a process that has them
says so in its output and in the numerics of /ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from specproxy.engine.assemble import Assembled
from specproxy.errors import ConfigError

VARIABLE = "UNSAFE_TEST_FAULTS"
"""``flip_token:N``: every Nth accepted token is another one."""

_FORM = "flip_token:"


class Faults:
    """Spoils the tokens that a step commits."""

    def __init__(self, flip_every: int, vocab_size: int) -> None:
        """``flip_every``: accepted tokens to one that is flipped, counted over all sequences."""
        self.flip_every = flip_every
        self.flipped = 0
        self._vocab = vocab_size
        self._accepted = 0

    def flip(self, tokens: Sequence[int]) -> list[int]:
        """The same tokens, of which an accepted one may be its neighbour; the last one is not drafted but sampled, so
        plain decoding is never touched."""
        spoiled = list(tokens)
        for i, token in enumerate(tokens[:-1]):
            self._accepted += 1
            if self._accepted % self.flip_every == 0:
                spoiled[i] = (token + 1) % self._vocab
                self.flipped += 1
        return spoiled


def inject_wanted(assembled: Assembled, env: Mapping[str, str], tell: Callable[[str], None]) -> None:
    """Put in what ``env`` asks for. Raises ConfigError where that is no fault."""
    wanted = env.get(VARIABLE)
    if not wanted:
        return
    number = wanted.removeprefix(_FORM)
    if not wanted.startswith(_FORM) or not number.isdecimal() or int(number) < 1:
        raise ConfigError(f"{VARIABLE}: expected {_FORM}N with N from 1 on, got {wanted}")
    inject(assembled, int(number))
    tell(f"{VARIABLE}: {assembled.numerics.detail}")


def inject(assembled: Assembled, flip_every: int) -> Faults:
    """Flip one accepted token in ``flip_every`` from now on."""
    faults = assembled.engine.answers.faults = Faults(flip_every, assembled.host.vocab_size)
    detail = f"FAULTS ON: one accepted token in {flip_every} is flipped"
    before = assembled.numerics.detail
    assembled.numerics = replace(assembled.numerics, detail=f"{before}; {detail}" if before else detail)
    return faults

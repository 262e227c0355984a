"""What rank 0 tells the other ranks, and what they answer, as data.

Only the target is shared. Drafts, sampling and the walk happen on rank 0 alone: logits and hidden states are whole
there. What the others must repeat is each forward, in its order and with its shape, and whatever else touches the KV
that their forwards read.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from specproxy.engine.runner import Rules
from specproxy.engine.step import Step


class Make(Struct, tag="make"):
    """Allocate KV buffers of this number."""

    buffers: int
    pages: int
    page_size: int


class Drop(Struct, tag="drop"):
    """Rank 0 has let go of these buffers."""

    buffers: int


class Clear(Struct, tag="clear"):
    """A page changes hands."""

    buffers: int
    page: int


class Copy(Struct, tag="copy"):
    """An accepted tree path moves down."""

    buffers: int
    source: list[int]
    target: list[int]


class Run(Struct, tag="run"):
    """Execute a step. ``rules`` decide its width; ``hidden``: states that are captured."""

    buffers: int
    step: Step
    rules: Rules
    hidden: list[int]


class Loaded(Struct, tag="loaded"):
    """A rank has its part of the target."""


class Refused(Struct, tag="refused"):
    """A rank cannot have it; ``message`` is for the user."""

    message: str


Command = Make | Drop | Clear | Copy | Run
Answer = Loaded | Refused

encode = Encoder().encode
decode_command: Decoder[Command] = Decoder(Command)
decode_answer: Decoder[Answer] = Decoder(Answer)

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.heads.loading import read_head
from specproxy.heads.readings import Overrides
from specproxy.models.base import FINAL
from tests.heads.checkpoints import (
    Checkpoint,
    Draw,
    FakeTarget,
    Sizes,
    fake_target,
    llama_tensors,
    original_eagle3,
    specforge_eagle3,
    speculators_eagle3,
)
from tests.heads.reference import Eagle3, Shape, arrays
from tests.heads.running import assert_drafts_as, load, sample

SIZES = Sizes()
DRAW = Draw(99)
WIDE = replace(SIZES, target_hidden=40)
"""A target that is wider than the head."""
FOUR = replace(SIZES, count=4)


@dataclass(frozen=True)
class Variant:
    """A published form, and what the reference must do about it. ``layer``, ``head``: arguments of Shape and Eagle3.
    ``tie``: the output is the embedding."""

    make: Callable[[], Checkpoint]
    sizes: Sizes = SIZES
    layer: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    tie: bool = False


def with_biases() -> Checkpoint:
    """Biases on q, k, v and o, norms on the heads of q and k."""
    found = specforge_eagle3(SIZES)
    more: dict[str, Tensor] = {}
    for name in "qkvo":
        weight = found.tensors[f"midlayer.self_attn.{name}_proj.weight"]
        more[f"midlayer.self_attn.{name}_proj.bias"] = DRAW.normal(weight.shape[0])
    more["midlayer.self_attn.q_norm.weight"] = DRAW.norm(SIZES.head_dim)
    more["midlayer.self_attn.k_norm.weight"] = DRAW.norm(SIZES.head_dim)
    return found.plus(**more)


def full_vocabulary(**config: Any) -> Checkpoint:
    """No vocabulary of its own, no output in the file."""
    bare = original_eagle3(replace(SIZES, draft_vocab=SIZES.vocab)).without("lm_head.weight", "d2t", "t2d")
    return bare.saying(draft_vocab_size=None, **config)


def own_embedding(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with an embedding in the file."""
    return checkpoint.plus(embed_tokens__weight=DRAW.normal(SIZES.vocab, SIZES.hidden))


def layered(norm: str) -> Checkpoint:
    """speculators' layout with a second layer, ``norm`` before its attention."""
    found = speculators_eagle3(SIZES)
    more = dict(llama_tensors(DRAW, SIZES, "layers.1.", SIZES.hidden))
    return found.plus(**more, **{f"layers.1.{norm}.weight": DRAW.norm(SIZES.hidden)})


def last_state_only() -> Checkpoint:
    """No layers: the target's final state, as it is."""
    found = specforge_eagle3(SIZES).without("fc.weight")
    return found.saying(eagle_config={"use_aux_hidden_state": False})


def normed(norms: tuple[str, ...], flag: str, width: int) -> Checkpoint:
    """Norms before ``fc``."""
    found = specforge_eagle3(SIZES).saying(**{flag: True})
    return found.plus(**{f"{name}.weight": DRAW.norm(width) for name in norms})


SPECULATORS = {"prefix": "layers.0."}
THETA = {"theta": 500000.0}
EACH, LEGACY = ("fc_norm.0", "fc_norm.1", "fc_norm.2"), ("aux_norm_low", "aux_norm_mid", "aux_norm_high")
VARIANTS = {
    "original": Variant(lambda: original_eagle3(SIZES), layer={"head_dim": 6}),
    "specforge": Variant(lambda: specforge_eagle3(SIZES), layer=THETA),
    "specforge says norm_output, which means nothing": Variant(
        lambda: specforge_eagle3(SIZES).saying(norm_output=True), layer=THETA
    ),
    "speculators": Variant(lambda: speculators_eagle3(SIZES), layer={"theta": 20000.0}, head=SPECULATORS),
    "norm_before_residual": Variant(
        lambda: speculators_eagle3(SIZES).saying(norm_before_residual=True),
        layer={"theta": 20000.0},
        head={**SPECULATORS, "norm_before_residual": True},
    ),
    "norm_output": Variant(
        lambda: speculators_eagle3(SIZES).saying(norm_output=True),
        layer={"theta": 20000.0},
        head={**SPECULATORS, "norm_output": True},
    ),
    "target wider than the head": Variant(
        lambda: speculators_eagle3(WIDE), sizes=WIDE, layer={"theta": 20000.0}, head=SPECULATORS
    ),
    "one norm before fc": Variant(
        lambda: normed(("input_norm",), "norm_before_fc", 72), layer=THETA, head={"norms": ("input_norm",)}
    ),
    "a norm a state": Variant(lambda: normed(EACH, "fc_norm", 24), layer=THETA, head={"norms": EACH}),
    "a norm a state, old names": Variant(
        lambda: normed(LEGACY, "use_aux_norm", 24), layer=THETA, head={"norms": LEGACY}
    ),
    "four states": Variant(lambda: specforge_eagle3(FOUR, ids=(1, 3, 5, 8)), sizes=FOUR, layer=THETA),
    "last state only": Variant(last_state_only, layer=THETA),
    "biases and head norms": Variant(with_biases, layer=THETA),
    "sliding window": Variant(
        lambda: specforge_eagle3(SIZES).saying(layer_types=["sliding_attention"], sliding_window=5),
        layer={**THETA, "window": 5},
    ),
    "target's output": Variant(full_vocabulary, layer={"head_dim": 6}),
    "output tied to its own embedding": Variant(
        lambda: own_embedding(full_vocabulary(tie_word_embeddings=True)), layer={"head_dim": 6}, tie=True
    ),
    "output tied to the target's embedding": Variant(
        lambda: full_vocabulary(tie_word_embeddings=True), layer={"head_dim": 6}, tie=True
    ),
    "two layers": Variant(
        lambda: layered("input_layernorm"),
        layer={"theta": 20000.0},
        head={**SPECULATORS, "more": ("input_layernorm",)},
    ),
    "two layers, other norm": Variant(
        lambda: layered("hidden_norm"), layer={"theta": 20000.0}, head={**SPECULATORS, "more": ("hidden_norm",)}
    ),
}


def reference(variant: Variant, checkpoint: Checkpoint, target: FakeTarget) -> Eagle3:
    """The reference of a variant's checkpoint."""
    sizes = variant.sizes
    shape = {"heads": sizes.heads, "kv_heads": sizes.kv_heads, "head_dim": sizes.head_dim, "eps": sizes.eps}
    embedding = checkpoint.tensors.get("embed_tokens.weight", target.embedding)
    output = embedding if variant.tie else checkpoint.tensors.get("lm_head.weight", target.output)
    weights = arrays(checkpoint.tensors)
    return Eagle3(weights, Shape(**shape | dict(variant.layer)), embedding.numpy(), output.numpy(), **variant.head)


@pytest.mark.parametrize("length", [1, 2, 19, 37])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_head_computes_what_its_reference_does(name: str, length: int, tmp_path: Path) -> None:
    """Every published variant gives the reference's states and scores, over the target's states and over its own."""
    variant, target = VARIANTS[name], fake_target(VARIANTS[name].sizes)
    checkpoint = variant.make()
    head = load(checkpoint, tmp_path, target.facts)
    taps, tokens = sample(head, SIZES.vocab, variant.sizes.target_hidden, length)
    assert_drafts_as(reference(variant, checkpoint, target), head, taps, tokens, steps=3, chunk=length)


@pytest.mark.parametrize("chunk", [1, 7, 16, 40])
def test_entries_may_come_in_parts(chunk: int, tmp_path: Path) -> None:
    """However the entries are cut, across pages that lie apart, states and scores are the whole sequence's."""
    target = fake_target(SIZES)
    checkpoint = specforge_eagle3(SIZES)
    head = load(checkpoint, tmp_path, target.facts)
    taps, tokens = sample(head, SIZES.vocab, SIZES.hidden, 40)
    expected = reference(VARIANTS["specforge"], checkpoint, target)
    assert_drafts_as(expected, head, taps, tokens, steps=2, chunk=chunk)


def test_a_sequence_may_begin_anywhere(tmp_path: Path) -> None:
    """Entries behind a gap have the positions of their states, and nothing before them."""
    target = fake_target(SIZES)
    checkpoint = specforge_eagle3(SIZES)
    head = load(checkpoint, tmp_path, target.facts)
    taps, tokens = sample(head, SIZES.vocab, SIZES.hidden, 9)
    expected = reference(VARIANTS["specforge"], checkpoint, target)
    assert_drafts_as(expected, head, taps, tokens, steps=2, chunk=9, first=131)


def test_the_residual_flag_changes_what_a_head_says(tmp_path: Path) -> None:
    """The same weights under the other reading are the other reference: the comparison can fail."""
    target, variant = fake_target(SIZES), VARIANTS["speculators"]
    checkpoint = variant.make()
    loaded = read_head(str(checkpoint.write(tmp_path)), target.facts)
    flipped = next(reading for reading in loaded.readings if reading.norm_before_residual)
    head: Any = loaded.under(flipped)
    taps, tokens = sample(head, SIZES.vocab, SIZES.hidden, 6)
    nominal = reference(variant, checkpoint, target)
    assert_drafts_as(replace(nominal, norm_before_residual=True), head, taps, tokens, steps=2, chunk=6)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_drafts_as(nominal, head, taps, tokens, steps=2, chunk=6)
    assert head.spec.fingerprint != loaded.head.spec.fingerprint


def test_the_description_names_what_the_engine_must_provide(tmp_path: Path) -> None:
    """States, KV, window, vocabulary and verifier come out of the file."""
    head = load(speculators_eagle3(SIZES), tmp_path, fake_target(SIZES).facts)
    assert head.spec.kind == "eagle3"
    assert head.spec.hidden == (2, 6, 9)
    assert [(s.heads, s.k_dim, s.v_dim) for s in head.spec.layers] == [(2, 8, 8)]
    assert (head.spec.steps, head.spec.window, head.spec.verifier) == (None, 256, "org/tiny-target")
    ids = speculators_eagle3(SIZES).tensors["t2d"].nonzero().flatten()
    assert head.spec.ids is not None
    assert torch.equal(head.spec.ids, ids)


def test_a_window_as_long_as_the_targets_is_none(tmp_path: Path) -> None:
    """A head trained for all of the target's positions has no window of its own."""
    head = load(original_eagle3(SIZES).saying(max_position_embeddings=512), tmp_path, fake_target(SIZES).facts)
    assert head.spec.window is None


def test_a_head_of_the_last_state_asks_for_it(tmp_path: Path) -> None:
    """Without layers the state behind the target's final norm is captured."""
    head = load(last_state_only(), tmp_path, fake_target(SIZES).facts)
    assert head.spec.hidden == (FINAL,)


@pytest.mark.parametrize("norms", [("input_layernorm", "hidden_norm"), ()])
def test_layers_that_engines_read_differently_are_refused(norms: tuple[str, ...], tmp_path: Path) -> None:
    """A second layer is served only where the file tells which norm stands before its attention."""
    more = dict(llama_tensors(DRAW, SIZES, "layers.1.", SIZES.hidden))
    more |= {f"layers.1.{norm}.weight": DRAW.norm(SIZES.hidden) for norm in norms}
    with pytest.raises(ModelLoadError, match="exactly one of input_layernorm and hidden_norm"):
        load(speculators_eagle3(SIZES).plus(**more), tmp_path, fake_target(SIZES).facts)


def test_two_kinds_of_norm_before_fc_are_refused(tmp_path: Path) -> None:
    """Nobody says in which order both would come."""
    both = normed(("input_norm",), "norm_before_fc", 72).saying(fc_norm=True)
    with pytest.raises(ModelLoadError, match="norm_before_fc and fc_norm together"):
        load(both, tmp_path, fake_target(SIZES).facts)


def test_layers_of_several_kinds_of_attention_are_refused(tmp_path: Path) -> None:
    """One window holds for all layers, or there is none."""
    mixed = specforge_eagle3(SIZES).saying(layer_types=["sliding_attention", "full_attention"], sliding_window=4)
    with pytest.raises(ModelLoadError, match="layers of one kind"):
        load(mixed, tmp_path, fake_target(SIZES).facts)


def test_states_must_be_as_many_as_fc_takes(tmp_path: Path) -> None:
    """Layers that do not fill ``fc`` are refused, with what it takes."""
    with pytest.raises(ModelLoadError, match=r"takes 72 features; expected 2 states of the target, 2 x 24"):
        load(specforge_eagle3(SIZES), tmp_path, fake_target(SIZES).facts, Overrides(hidden=(2, 5)))


def test_a_bfloat16_head_gives_bfloat16(tmp_path: Path) -> None:
    """The head takes the target's type, whatever the file has, and stays near the reference."""
    target = fake_target(SIZES, torch.bfloat16)
    checkpoint = specforge_eagle3(SIZES)
    head = load(checkpoint, tmp_path, target.facts)
    taps, _ = sample(head, SIZES.vocab, SIZES.hidden, 5)
    fused = head.fuse(taps.bfloat16())
    assert fused.dtype == torch.bfloat16
    expected = taps @ checkpoint.tensors["fc.weight"].T
    torch.testing.assert_close(fused.double(), expected, rtol=0.05, atol=0.05)

"""MTP heads against the reference in ``mtp_reference.py``, in float64, over keys and values in scattered pages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from specproxy.heads.base import RecurrentHead
from specproxy.kernels.paged import LayerShape
from specproxy.models.base import FINAL
from tests.heads.mtp_checkpoints import (
    DEEPSEEK,
    FAMILIES,
    GLM,
    LAYERS,
    MIMO,
    MIMO_V2,
    QWEN,
    Checkpoint,
    H,
    V,
    load,
    random_tensors,
    target_facts,
    target_tensors,
    varied,
)
from tests.heads.mtp_reference import Reference
from tests.heads.mtp_run import Run

T = 17
TOLERANCE = 1e-9
KINDS = {"mimo_v2": "mimo_v2", "mimo": "mimo", "deepseek": "deepseek", "glm": "glm", "qwen": "qwen_next"}


@dataclass
class Pair:
    """A head, its reference, and T entries."""

    head: RecurrentHead
    reference: Reference
    ids: Tensor
    hidden: Tensor


def kind_of(name: str) -> str:
    """The reference's name of a family."""
    return next(kind for start, kind in KINDS.items() if name.startswith(start))


def pair(name: str, checkpoint: Checkpoint, modules: int = 1) -> Pair:
    """Both over the same random tensors."""
    tensors = random_tensors(checkpoint, modules)
    table, output = target_tensors()
    generator = torch.Generator().manual_seed(5)
    return Pair(
        head=load(checkpoint, tensors),
        reference=Reference(kind_of(name), tensors, checkpoint.config, LAYERS, table, output),
        ids=torch.randint(V, (T + 8,), generator=generator),
        hidden=torch.randn(T, H, generator=generator, dtype=torch.float64),
    )


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal in float64."""
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_family_computes_what_its_papers_say(name: str) -> None:
    """States and scores of every family are the reference's to 1e-9."""
    p = pair(name, FAMILIES[name])
    positions = torch.arange(T)
    step = Run(p.head).step(p.ids[:T], p.hidden, positions)
    expected = p.reference.run(p.ids[:T], p.hidden, positions)
    close(step.features, expected)
    close(step.recurrent, expected)
    close(p.head.logits(step.features), p.reference.scores(expected))


@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_and_drafts_go_on_where_the_last_ones_ended(name: str) -> None:
    """Entries in chunks, then three steps on the head's own states, are one sequence to the reference."""
    p = pair(name, FAMILIES[name])
    run, states, hidden = Run(p.head), [], p.hidden
    for start, stop in ((0, 5), (5, 6), (6, T)):
        positions = torch.arange(start, stop)
        states.append(run.step(p.ids[start:stop], hidden[start:stop], positions).recurrent)
    for position in range(T, T + 3):
        hidden = torch.cat([hidden, states[-1][-1:]])
        states.append(run.step(p.ids[position : position + 1], hidden[-1:], torch.tensor([position])).recurrent)
    close(torch.cat(states), p.reference.run(p.ids[: T + 3], hidden, torch.arange(T + 3)))


@pytest.mark.parametrize("name", ["mimo", "mimo_v2", "deepseek", "glm", "qwen_next"])
def test_sequences_of_a_step_do_not_see_each_other(name: str) -> None:
    """Two sequences in one step come out as each alone."""
    p = pair(name, FAMILIES[name])
    positions = torch.cat([torch.arange(8), torch.arange(T - 8)])
    out = Run(p.head).step(p.ids[:T], p.hidden, positions, (8, T - 8)).features
    close(out[:8], p.reference.run(p.ids[:8], p.hidden[:8], positions[:8]))
    close(out[8:], p.reference.run(p.ids[8:T], p.hidden[8:], positions[8:]))


@pytest.mark.parametrize("name", ["mimo", "mimo_v2", "deepseek", "glm", "qwen_next"])
def test_modules_have_weights_and_kv_of_their_own(name: str) -> None:
    """Of several modules each drafts one token and remembers its own entries, also while the others go on.

    Module i stands i positions behind the first. It reads the state of the module before; MiMo-V2's all read the
    target's.
    """
    p = pair(name, FAMILIES[name], modules=3)
    run = Run(p.head)
    seen: list[list[Tensor]] = [[], [], []]
    for start, stop in ((0, 9), (9, 10), (10, T)):
        hidden = p.hidden[start:stop]
        for module in range(3):
            positions = torch.arange(start, stop) + module
            seen[module].append(hidden)
            step = run.step(p.ids[positions], hidden, positions, module=module)
            whole = torch.arange(stop) + module
            expected = p.reference.run(p.ids[whole], torch.cat(seen[module]), whole, module)[start:]
            close(step.features, expected)
            close(p.head.logits(step.features, module), p.reference.scores(expected, module))
            assert torch.equal(step.recurrent, hidden if name == "mimo_v2" else step.features)
            hidden = step.recurrent
    assert p.head.spec.steps == 3
    assert len(p.head.spec.layers) == 3
    assert ("target's state" in p.head.spec.reading) is (name == "mimo_v2")


@pytest.mark.parametrize(("checkpoint", "blank"), [(DEEPSEEK, True), (GLM, True), (MIMO, False), (QWEN, False)])
def test_embedding_counts_as_zero_at_position_zero(checkpoint: Checkpoint, blank: bool) -> None:
    """In the families that were trained so, the token behind the first one says nothing; in the others it does."""
    head = load(checkpoint, random_tensors(checkpoint))
    hidden = torch.randn(2, H, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def first(token: int) -> Tensor:
        return Run(head).step(torch.tensor([token, 3]), hidden, torch.arange(2)).features

    assert torch.equal(first(7), first(8)) is blank


def test_attention_sinks_take_their_share() -> None:
    """MiMo-V2's sinks are the reference's, as closely as the kernel's float32 allows."""
    checkpoint = varied(MIMO_V2, add_swa_attention_sink_bias=True)
    p = pair("mimo_v2", checkpoint)
    positions = torch.arange(T)
    step = Run(p.head).step(p.ids[:T], p.hidden, positions)
    expected = p.reference.run(p.ids[:T], p.hidden, positions)
    torch.testing.assert_close(step.features, expected, rtol=0, atol=2e-5)
    without = {name: tensor for name, tensor in p.reference.tensors.items() if "sink" not in name}
    plain = Run(load(MIMO_V2, without)).step(p.ids[:T], p.hidden, positions)
    assert not torch.allclose(plain.features, expected, rtol=0, atol=1e-2)


def test_description_says_what_the_engine_must_provide() -> None:
    """A head names the state it reads, the KV it keeps and how far it drafts."""
    spec = load(DEEPSEEK, random_tensors(DEEPSEEK)).spec
    assert (spec.kind, spec.hidden, spec.steps, spec.window, spec.ids) == ("mtp", (FINAL,), None, None, None)
    assert spec.layers == (LayerShape(4, 14, 5),)
    assert load(MIMO_V2, random_tensors(MIMO_V2)).spec.layers == (LayerShape(2, 12, 8),)
    assert load(MIMO, random_tensors(MIMO)).spec.layers == (LayerShape(2, 8, 8),)


def test_fingerprint_follows_the_weights() -> None:
    """Two heads of the same tensors are the same, those of others are not."""
    same = [load(MIMO, random_tensors(MIMO, seed=seed)).spec.fingerprint for seed in (1, 1, 2)]
    assert same[0] == same[1] != same[2]


def test_target_state_is_taken_as_it_is() -> None:
    """There is one captured state, and nothing to fuse."""
    head = load(MIMO, random_tensors(MIMO))
    taps = torch.randn(3, H, dtype=torch.float64)
    assert torch.equal(head.fuse(taps), taps)


@pytest.mark.parametrize("place", ["none", "the target's names", "lm_head of the layer"])
def test_embedding_and_output_come_from_where_they_are(place: str) -> None:
    """Without tables of their own the modules use the target's; tables under the target's names count as their own."""
    tensors, at = random_tensors(GLM), f"model.layers.{LAYERS}"
    table, rows = tensors.pop(f"{at}.embed_tokens.weight"), tensors.pop(f"{at}.shared_head.head.weight")
    if place == "none":
        table, rows = target_tensors()
    elif place == "the target's names":
        tensors |= {"model.embed_tokens.weight": table, "lm_head.weight": rows}
    else:
        tensors |= {f"{at}.embed_tokens.weight": table, f"{at}.lm_head.weight": rows}
    head = load(GLM, tensors)
    reference = Reference("glm", {**tensors, f"{at}.embed_tokens.weight": table}, GLM.config, LAYERS, table, rows)
    ids, positions = torch.arange(9), torch.arange(9)
    hidden = torch.randn(9, H, dtype=torch.float64)
    step = Run(head).step(ids, hidden, positions)
    expected = reference.run(ids, hidden, positions)
    close(step.features, expected)
    close(head.logits(step.features), expected @ rows.T)


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_run_in_the_targets_precision(name: str) -> None:
    """In bfloat16 a head gives bfloat16 near to what it gives in float64."""
    checkpoint = FAMILIES[name]
    tensors = random_tensors(checkpoint)
    hidden = torch.randn(T, H, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ids, positions = torch.arange(T), torch.arange(T)
    half = load(checkpoint, tensors, target_facts(dtype=torch.bfloat16))
    rough = Run(half, torch.bfloat16).step(ids, hidden.bfloat16(), positions).features
    exact = Run(load(checkpoint, tensors)).step(ids, hidden, positions).features
    assert rough.dtype == torch.bfloat16
    assert torch.cosine_similarity(rough.double(), exact, 1).median() > 0.99

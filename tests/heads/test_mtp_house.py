"""The bundled target and the MTP module that was trained with it."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer

from specproxy.heads.base import RecurrentHead, TargetFacts
from specproxy.heads.mtp import build
from specproxy.heads.mtp_files import files, wanted
from specproxy.heads.weights import Weights, read_tensors
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models.base import FINAL, StepModel
from specproxy.models.loading import load_model
from tests.heads.mtp_run import Run

TEXT = '{"name": "Ada", "city": "London"}\n{"name": "Alan", "city": "London"}\n{"name": "Ada", "city": "London"}\n'

ENTRIES, REPEATED = 32, 16
"""Tokens that are read, and from where on they were there before."""


@pytest.fixture(scope="module")
def house() -> tuple[StepModel, RecurrentHead, list[int]]:
    """The target, its head, and a few tokens."""
    model, folder = load_model("house", "target", device="cpu")
    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"]
    facts = TargetFacts(
        embed=model.embed,
        head=model.head,
        config=model.config,
        folder=folder,
        hidden_size=model.spec.hidden_size,
        num_layers=layers,
        vocab_size=model.spec.vocab_size,
        dtype=model.spec.dtype,
        device="cpu",
    )
    found = files(folder, layers)
    assert [file.name for file in found] == ["mtp.safetensors"]
    tensors = read_tensors("house", found, wanted(layers))
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids[:64]
    return model, build(Weights("house", tensors, facts.dtype, facts.device), config, facts), ids


def target_states(model: StepModel, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and states behind the final norm of a whole prompt."""
    kv = KVBuffers.allocate(list(model.spec.layers), 8, 16, model.spec.dtype, "cpu")
    table, count = [2, 3, 4, 5], len(ids)
    slots = torch.arange(2 * 16, 2 * 16 + count)
    plan = plan_attention([Span(0, count, 0, table)], slots, kv, exact=False)
    logits, taps = model.forward(torch.tensor(ids), torch.arange(count), plan, kv, None, [FINAL])
    return logits, taps[0]


def test_bundled_module_guesses_what_the_target_says(house: tuple[StepModel, RecurrentHead, list[int]]) -> None:
    """Where text repeats, the module mostly agrees with the target's next token; given other tokens, it does not."""
    model, head, ids = house
    with torch.inference_mode():
        logits, states = target_states(model, ids)
        following, greedy = torch.tensor(ids[1:]), logits[1:].argmax(-1)

        def agreement(tokens: torch.Tensor) -> float:
            step = Run(head, model.spec.dtype).step(tokens[:ENTRIES], states[:ENTRIES], torch.arange(ENTRIES))
            same = head.logits(step.features).argmax(-1) == greedy[:ENTRIES]
            return float(same[REPEATED:].float().mean())

        assert agreement(following) >= 0.6
        assert agreement(following.flip(0)) < 0.3


def test_bundled_module_drafts_on(house: tuple[StepModel, RecurrentHead, list[int]]) -> None:
    """Fed its own state and guess, the module goes on in the target's type."""
    model, head, ids = house
    with torch.inference_mode():
        _, states = target_states(model, ids)
        run = Run(head, model.spec.dtype)
        step = run.step(torch.tensor(ids[1:21]), states[:20], torch.arange(20))
        for position in (20, 21, 22):
            guess = head.logits(step.features[-1:]).argmax(-1)
            step = run.step(guess, step.recurrent[-1:], torch.tensor([position]))
            assert step.features.dtype == model.spec.dtype
            assert step.features.isfinite().all()

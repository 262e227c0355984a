"""What two ranks compute is what one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from specproxy.config.schema import DrafterConfig, ModelConfig
from specproxy.engine.assemble import PAGE_SIZE
from specproxy.engine.ranks.leader import load_target
from specproxy.engine.ranks.part import load_part
from specproxy.engine.runner import NUMERIC, Runner
from specproxy.engine.step import Step, prefill_step
from specproxy.engine.threads import Threads
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import FINAL, StepModel
from specproxy.models.fused import FusedModel
from specproxy.vocabulary import SamplingParams
from tests.support.driver import Answer, Driver
from tests.support.identity import decision
from tests.tensor_parallel.conftest import Shared

NEAR = 1e-3
"""Float32 logits and states of the models here, some ten in size, differ by less where sums are cut in two."""

NGRAM = {"ngram": DrafterConfig(type="ngram")}
SCORED = SamplingParams(temperature=0.0, max_tokens=24, logprobs=1)


def test_answers_are_those_of_one_rank(
    shared: Shared, write_model: Callable[..., str], assemble_engine: Callable[..., Driver], mini: list[dict[str, Any]]
) -> None:
    """In float32, where no near-tie flips, two ranks answer token for token as one does, with logprobs that differ by
    rounding, and each holds half of the KV."""
    options: dict[str, Any] = {"path": write_model("llama", "float32"), "exactness": "numeric", "max_sequences": 4}
    options["max_model_len"] = 512
    records = [record for record in mini if len(record["ids"]) < 400][:3]
    one = assemble_engine(NGRAM, fresh=True, **options)
    expected = _answers(one, records)
    with shared(NGRAM, **options) as two:
        found = _answers(two, records)
        assert two.engine.runner.kv.bytes() == one.engine.runner.kv.bytes() / 2
    for mine, its in zip(found, expected, strict=True):
        assert mine.tokens == its.tokens
        scores = [[score.logprob for score in answer.logprobs] for answer in (mine, its)]
        assert scores[0] == pytest.approx(scores[1], abs=NEAR)


@pytest.mark.parametrize("kind", ["qwen3", "grown"])
def test_logits_and_states_are_whole_on_rank_0(write_model: Callable[..., str], kind: str) -> None:
    """Logits and hidden states of a prompt, a tree and what follows it differ from one rank's by rounding, and each
    rank holds half of the layers: with biases before and behind a sum and norms of the heads, and where a model is
    grown on every rank and cut layer by layer."""
    config = ModelConfig(
        path="house" if kind == "grown" else write_model(kind, "float32", attention_bias=True),
        grow="tiny-8b" if kind == "grown" else "",
        dtype="float32",
        device="cpu",
        tensor_parallel=2,
        threads=1,
    )
    whole, _ = load_part(config, None)
    expected = _states(whole)
    part, _ = load_target(config, lambda why: None)
    try:
        found = _states(part)
    finally:
        assert part.group is not None
        part.group.leave()
    for name, a, b in zip(("logits", "states", "final states"), found, expected, strict=True):
        assert (a - b).abs().max() < NEAR, name
    assert _layer_bytes(part) < 0.51 * _layer_bytes(whole)


def _answers(driver: Driver, records: Sequence[dict[str, Any]]) -> list[Answer]:
    return driver.run([driver.submission(r["ids"], decision("ngram", 4), params=SCORED) for r in records])


@torch.no_grad()
def _states(model: StepModel) -> list[Tensor]:
    """Logits and states of a tree behind a prompt, of which a branch is then copied down, and of what follows it."""
    kv = KVBuffers.allocate(model.spec.layers, 5, PAGE_SIZE, model.spec.dtype, "cpu")
    runner = Runner(model, kv, NUMERIC, Threads(1, 1))
    table, hidden = [2, 3, 4], (1, FINAL)
    for page in table:
        runner.kv.zero_page(page)
    tokens = torch.randint(0, 8192, (150,), generator=torch.Generator().manual_seed(2)).tolist()
    for base in (0, 128):
        runner.run(prefill_step(tokens, base, base, min(base + 128, 150), table, runner.kv, 128))
    tree, last = Step("decode"), Step("decode")
    tree.add_tree(7, [11, 12, 13], [-1, -1, 1], 150, table, PAGE_SIZE)
    first = runner.run(tree, hidden)
    slot = table[2] * PAGE_SIZE + 150 % PAGE_SIZE
    runner.kv.copy_slots([slot + 2, slot + 3], [slot + 1, slot + 2])
    last.add_chain([14], 153, table, PAGE_SIZE, 0)
    second = runner.run(last, hidden)
    return [torch.cat(pair) for pair in zip([first[0], *first[1]], [second[0], *second[1]], strict=True)]


def _layer_bytes(model: StepModel) -> int:
    assert isinstance(model, FusedModel)
    return sum(weight.numel() * weight.element_size() for weight in model.stock.model.layers.parameters())

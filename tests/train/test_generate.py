from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specproxy.train import data, generate
from specproxy.train.data import Mixture, answer_tasks, build_corpus
from specproxy.train.generate import Question, answer
from specproxy.train.packing import Document
from specproxy.train.records import Limits, Task
from specproxy.train.target import FrozenTarget


def test_answers_equal_those_of_transformers(
    target: FrozenTarget, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left-padded batches, rows that drop out and prompts computed in parts change no token."""
    monkeypatch.setattr(generate, "LOOK_EVERY", 2)
    monkeypatch.setattr(generate, "KEEP_BELOW", 1.0)
    monkeypatch.setattr(generate, "PROMPT_TOKENS", 100)
    found = answer(target, [Question(task.ids) for task in tasks], max_new=24, batch_tokens=10_000)
    for task, tokens in zip(tasks, found, strict=True):
        ids = torch.tensor([task.ids])
        wanted = target.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert tokens == tuple(wanted[0, len(task.ids) :].tolist())
    assert any(tokens[-1] in target.eos_ids for tokens in found)
    assert target.model.config._attn_implementation == "sdpa"


def test_samples_follow_their_seed_and_the_temperature(target: FrozenTarget, tasks: list[Task]) -> None:
    """Equal seeds give equal answers, others others; at temperature 0 the seed means nothing."""
    warm = [Question(tasks[2].ids, 1.0)] * 2

    def sample(seed: int) -> list[tuple[int, ...]]:
        return answer(target, warm, max_new=8, batch_tokens=10_000, seed=seed)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1)[0] != sample(1)[1]
    cold = [Question(tasks[2].ids)]
    assert answer(target, cold, max_new=8, batch_tokens=1, seed=1) == answer(
        target, cold, max_new=8, batch_tokens=1, seed=2
    )


def test_samples_have_the_distribution_of_the_logits(target: FrozenTarget) -> None:
    """The Gumbel trick at temperature 2 samples softmax(logits / 2): frequencies of 20,000 draws are within 0.02."""
    answering = generate._Answering(target, [Question((1,), 2.0)], 1, torch.Generator().manual_seed(0))
    answering._temperatures = torch.full((20_000,), 2.0)
    logits = torch.tensor([2.0, 0.0, -1.0, 3.0])
    drawn = answering._pick(logits.expand(20_000, 4)).bincount(minlength=4) / 20_000
    assert (drawn - (logits / 2).softmax(0)).abs().max() < 0.02
    assert (drawn - logits.softmax(0)).abs().max() > 0.02


def test_answers_are_made_once(tmp_path: Path, target: FrozenTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same target, data and options read the file; a change of an option answers anew."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "Hello."}], "category": "talk"}')

    def build(seed: int) -> data.Corpus:
        mixture = Mixture(max_new=4, seed=seed, answers=2)
        return build_corpus(target, [file], tmp_path, limits=Limits(), mixture=mixture, batch_tokens=1000)

    first = build(0)
    assert (first.reused, first.sources, len(first.documents)) == (False, {"talk": 2}, 2)
    monkeypatch.setattr(data, "answer", lambda *_, **__: pytest.fail("answered again"))
    again = build(0)
    assert (again.reused, again.documents) == (True, first.documents)
    with pytest.raises(pytest.fail.Exception, match="answered again"):
        build(1)


def test_the_mixture_decides_what_is_greedy_and_what_counts(
    target: FrozenTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About the wanted share is greedy, the others have one of the temperatures; of a text all tokens count, of a chat
    the answer's; captured answers stay."""
    asked: list[Question] = []

    def say(_target: FrozenTarget, questions: list[Question], **_: object) -> list[tuple[int, ...]]:
        asked.extend(questions)
        return [(9, 2)] * len(questions)

    monkeypatch.setattr(data, "answer", say)
    tasks = [Task((1, 2, 3), "chat"), Task((4, 5), "text", text=True), Task((6,), "seen", answer=(7, 2))] * 100
    made = answer_tasks(target, tasks, Mixture(greedy=0.25, temperatures=(0.5, 1.0)), batch_tokens=100)
    assert {q.temperature for q in asked} == {0.0, 0.5, 1.0}
    assert 30 < sum(q.temperature == 0 for q in asked) < 70
    assert made.count(Document((1, 2, 3, 9, 2), 3, "chat")) == 100
    assert made.count(Document((4, 5, 9, 2), 1, "text")) == 100
    assert made.count(Document((6, 7, 2), 1, "seen")) == 100

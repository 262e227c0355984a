"""What is learned from: the target's own answers to the prompts of the training files.

A head that learned other people's answers would guess what the target does not say. Answers are made once: they stand
in a file named after the target, the options and the data, and a second run reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from specproxy.errors import StartError
from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer
from specproxy.train.generate import Question, answer
from specproxy.train.packing import Document
from specproxy.train.records import Limits, Task, files_digest, read_tasks
from specproxy.train.target import FrozenTarget

FORMAT = 1
"""Of the answers' file; a change makes old files strangers."""


@dataclass(frozen=True)
class Mixture:
    """How prompts are answered: ``answers`` times each; a share ``greedy`` of all answers greedily, the others at one
    of ``temperatures``. ``seed`` decides which, and the samples."""

    greedy: float = 0.5
    temperatures: tuple[float, ...] = (0.7, 1.0)
    answers: int = 1
    max_new: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from. ``reused``: whether the answers were there already."""

    documents: list[Document]
    reused: bool = False
    sources: dict[str, int] = field(default_factory=dict)

    @property
    def trained_tokens(self) -> int:
        """Tokens that count for the loss."""
        return sum(len(d.ids) - d.start for d in self.documents)


def build_corpus(
    target: FrozenTarget,
    files: Sequence[Path],
    folder: Path,
    *,
    limits: Limits,
    mixture: Mixture,
    batch_tokens: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Corpus:
    """The corpus of ``files``, from ``folder`` if it is there, else answered and written to it.

    ``progress``: answers made, and of how many. Raises StartError for files that cannot be used.
    """
    key = [FORMAT, target.fingerprint, str(target.model.dtype), asdict(limits), asdict(mixture), files_digest(files)]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    file = folder / f"answers-{name}.safetensors"
    documents = _read(file) if file.is_file() else []
    reused = bool(documents)
    if not documents:
        tasks = read_tasks(files, Tokenizer.load(target.folder), ChatTemplate.load(target.folder), limits)
        documents = answer_tasks(target, tasks, mixture, batch_tokens=batch_tokens, progress=progress)
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, documents)
    sources: dict[str, int] = {}
    for document in documents:
        sources[document.source] = sources.get(document.source, 0) + 1
    return Corpus(documents, reused, dict(sorted(sources.items())))


def answer_tasks(
    target: FrozenTarget,
    tasks: Sequence[Task],
    mixture: Mixture,
    *,
    batch_tokens: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Document]:
    """Documents of the tasks, in order, ``mixture.answers`` of each that has no answer yet."""
    generator = torch.Generator().manual_seed(mixture.seed)
    open_tasks = [task for task in tasks for _ in range(mixture.answers) if task.answer is None]
    draws = torch.rand(len(open_tasks), generator=generator).tolist()
    choices = torch.randint(max(1, len(mixture.temperatures)), (len(open_tasks),), generator=generator).tolist()
    questions = [
        Question(task.ids, 0.0 if draw < mixture.greedy or not mixture.temperatures else mixture.temperatures[choice])
        for task, draw, choice in zip(open_tasks, draws, choices, strict=True)
    ]
    made = 0

    def done(count: int) -> None:
        nonlocal made
        made += count
        progress(made, len(questions))

    answers = answer(
        target, questions, max_new=mixture.max_new, batch_tokens=batch_tokens, seed=mixture.seed, done=done
    )
    known = [(task, task.answer) for task in tasks if task.answer is not None]
    return [_document(task, said) for task, said in [*zip(open_tasks, answers, strict=True), *known] if said]


def _document(task: Task, said: tuple[int, ...]) -> Document:
    """Of a text every token counts but the first; of a chat, the answer's."""
    return Document((*task.ids, *said), 1 if task.text else len(task.ids), task.source)


def _write(file: Path, documents: Sequence[Document]) -> None:
    names = sorted({d.source for d in documents})
    places = {name: i for i, name in enumerate(names)}
    tensors = {
        "ids": torch.tensor([token for d in documents for token in d.ids], dtype=torch.int32),
        "lengths": torch.tensor([len(d.ids) for d in documents], dtype=torch.int32),
        "starts": torch.tensor([d.start for d in documents], dtype=torch.int32),
        "sources": torch.tensor([places[d.source] for d in documents], dtype=torch.int32),
    }
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata={"sources": json.dumps(names)})
    partial.replace(file)


def _read(file: Path) -> list[Document]:
    try:
        with safe_open(file, framework="pt") as stream:
            names = json.loads(stream.metadata()["sources"])
            ids, lengths, starts, sources = (
                stream.get_tensor(name).tolist() for name in ("ids", "lengths", "starts", "sources")
            )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StartError(f"{file}: cannot be read; delete it and the answers are made anew: {error}") from None
    documents, at = [], 0
    for length, start, source in zip(lengths, starts, sources, strict=True):
        documents.append(Document(tuple(ids[at : at + length]), start, names[source]))
        at += length
    return documents

"""What drafters are given when they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from specproxy.engine.own_texts import write_own_texts
from specproxy.engine.runner import Runner
from specproxy.heads.base import OwnText, TargetFacts
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import StepModel
from specproxy.models.loading import tokenizer_hash, tokenizer_size
from specproxy.models.native import NativeModel


@dataclass
class DrafterHost:
    """What drafters are given at load (``drafters.registry.Host``)."""

    vocab_size: int
    max_model_len: int
    device: str
    tokenizer: str
    target: TargetFacts
    model: StepModel
    kv: KVBuffers
    num_pages: int
    page_size: int
    tell: Callable[[str], None]
    write_texts: Callable[[], list[OwnText]]
    listeners: list[Callable[[int], None]] = field(default_factory=list)

    def progress(self, what: str) -> None:
        """Tell whoever waits what is being done."""
        self.tell(what)

    def own_texts(self) -> list[OwnText]:
        """Texts that the target wrote."""
        return self.write_texts()

    def on_allocate(self, listener: Callable[[int], None]) -> None:
        """Call ``listener`` with every page that changes hands."""
        self.listeners.append(listener)

    def page_allocated(self, page: int) -> None:
        """Tell every listener."""
        for listener in self.listeners:
            listener(page)


def make_host(
    runner: Runner, folder: Path, grown: str, pages: int, page_size: int, progress: Callable[[str], None]
) -> DrafterHost:
    """What drafters are given; their pages are zeroed as the target's are."""
    model = runner.model
    host = DrafterHost(
        vocab_size=min(tokenizer_size(folder), model.spec.vocab_size),
        max_model_len=model.spec.max_len,
        device=model.spec.device,
        tokenizer=tokenizer_hash(folder),
        target=_facts(model, folder, grown),
        model=model,
        kv=runner.kv,
        num_pages=pages,
        page_size=page_size,
        tell=progress,
        write_texts=partial(write_own_texts, runner, folder, page_size),
    )
    host.on_allocate(runner.kv.zero_page)
    return host


def _facts(model: StepModel, folder: Path, grown: str) -> TargetFacts:
    """What heads share with the target."""
    spec = model.spec
    return TargetFacts(
        embed=model.embed,
        head=model.head,
        config=model.config,
        folder=folder,
        hidden_size=spec.hidden_size,
        num_layers=len(spec.layers),
        vocab_size=spec.vocab_size,
        dtype=spec.dtype,
        device=spec.device,
        grown=grown,
        code=model.code if isinstance(model, NativeModel) else None,
    )

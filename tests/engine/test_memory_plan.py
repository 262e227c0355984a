"""The memory plan: arithmetic on a card that is not there, sizes of drafters from their files, what starts say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specproxy.config.schema import DrafterConfig, EngineConfig, ModelConfig
from specproxy.engine.assemble import Assembled, assemble
from specproxy.engine.drafter_sizes import DrafterSize, TargetSize, drafter_size, weight_bytes
from specproxy.engine.memory_plan import (
    MIB,
    DeviceMemory,
    MemoryPlan,
    Reserves,
    check_settled,
    parse_bytes,
    plan_memory,
)
from specproxy.errors import ConfigError, ModelLoadError
from specproxy.kernels.paged import KEY_BLOCK, KVBuffers, LayerShape
from specproxy.models.base import ModelSpec
from specproxy.models.loading import find_model

GIB = 2**30
PAGE = 64
SPEC = ModelSpec(
    model_type="llama",
    path_kind="device",
    vocab_size=128256,
    hidden_size=4096,
    max_len=8192,
    dtype=torch.bfloat16,
    device="cuda",
    layers=(LayerShape(8, 128, 128),) * 32,
    fingerprint="f",
    eos_token_ids=(2,),
)
PER_TOKEN = 32 * 2 * 8 * 128 * 2
WEIGHTS = 16 * GIB
DRAFT = DrafterSize("draft", 2 * GIB, PER_TOKEN // 4, "files")
RESERVES = Reserves(graphs=GIB, workspace=GIB // 2)


def plan(
    memory: DeviceMemory, *drafters: DrafterSize, spec: ModelSpec = SPEC, config: ModelConfig | None = None
) -> MemoryPlan:
    """The plan of an 8B target for ``drafters``."""
    return plan_memory(config or ModelConfig(), spec, memory, WEIGHTS, drafters, RESERVES, PAGE)


def card(gib: int, others: int = 1) -> DeviceMemory:
    """A card of so many GiB on which the target is loaded, and ``others`` GiB are held by somebody else."""
    return DeviceMemory(gib * GIB, gib * GIB - WEIGHTS - others * GIB)


def test_kv_takes_what_a_card_has_left() -> None:
    """All of the card's share but what is there, the weights and the reserves becomes KV, to less than a page."""
    made = plan(card(80), config=ModelConfig(max_sequences=512))
    left = int(80 * GIB * 0.9) - (1 + 16 + 1) * GIB - GIB // 2
    assert made.others == GIB
    assert 0 <= made.free < PAGE * PER_TOKEN
    assert made.kv == left - made.free
    assert made.kv == (made.pages * PAGE + KEY_BLOCK) * PER_TOKEN


def test_drafters_share_the_rest_page_by_page() -> None:
    """Drafters' weights come off first; a page costs what target and drafters keep of it together."""
    alone = plan(card(80), config=ModelConfig(max_sequences=512))
    beside = plan(card(80), DRAFT, config=ModelConfig(max_sequences=512))
    assert 0 <= beside.free < PAGE * (PER_TOKEN + DRAFT.per_token)
    assert beside.kv + beside.drafter_kv(DRAFT) == alone.kv + alone.free - 2 * GIB - beside.free
    assert beside.drafter_kv(DRAFT) * 4 == beside.kv


def test_no_more_pages_than_sequences_can_fill() -> None:
    """KV ends at full length for every sequence, however large the card; the rest stays free."""
    made = plan(card(640), config=ModelConfig(max_sequences=4))
    assert made.pages == 4 * 8192 // PAGE + KVBuffers.RESERVED_PAGES
    assert made.tokens == 4 * 8192
    assert made.free > 500 * GIB


@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
def test_the_share_of_the_card_is_kept(share: float) -> None:
    """Nothing is planned beyond model.memory_share."""
    made = plan(card(80), DRAFT, config=ModelConfig(memory_share=share, max_sequences=512))
    parts = made.fixed + made.kv + made.drafter_kv(DRAFT)
    assert parts + made.free == made.budget == int(80 * GIB * share)
    assert made.free >= 0


def test_half_of_what_a_cpu_has_free() -> None:
    """Beside a CPU's other tenants the target's KV is half of the free memory at most, drafters or not."""
    spec = replace(SPEC, device="cpu", path_kind="fused")
    memory = DeviceMemory(64 * GIB, 40 * GIB)
    for drafters in ((), (DRAFT,)):
        made = plan(memory, *drafters, spec=spec, config=ModelConfig(max_sequences=512))
        assert made.pages - KVBuffers.RESERVED_PAGES == 20 * GIB // (PAGE * PER_TOKEN)


def test_what_was_asked_for_is_given() -> None:
    """An explicit kv_memory is taken to the page, spare slots included."""
    made = plan(card(80), config=ModelConfig(kv_memory="4GB"))
    rest = made.kv - KVBuffers.RESERVED_PAGES * PAGE * PER_TOKEN
    assert 4 * GIB - PAGE * PER_TOKEN < rest <= 4 * GIB


def test_a_card_that_is_too_small_is_refused_with_numbers() -> None:
    """The message says what one sequence needs, what there is, and what to change."""
    with pytest.raises(ModelLoadError) as refused:
        plan(card(24), DRAFT)
    first, *table = str(refused.value).splitlines()
    assert first.startswith("KV for one sequence of 8192 tokens needs 1024 MB, available are ")
    assert first.endswith("lower model.max_model_len or raise model.memory_share")
    assert any(
        line.split()[:3] == ["drafter", "draft", str(2048 + DRAFT.per_token * KEY_BLOCK // MIB)] for line in table
    )


def test_too_much_kv_is_refused_with_numbers() -> None:
    """A kv_memory beyond what is left is not tried."""
    with pytest.raises(ModelLoadError, match=r"memory of cuda: 73728 MB may be used, \d+ MB are needed; lower .*kv_m"):
        plan(card(80), config=ModelConfig(kv_memory="60GB"))


def test_lines_add_up() -> None:
    """The table's sizes are aligned and sum to what may be used."""
    made = plan(card(80), DRAFT, config=ModelConfig(max_sequences=512))
    head, *table = made.lines()
    assert head == "memory of cuda: 81920 MB, used up to 0.9 of it"
    assert len({line.index(" MB") for line in table}) == 1
    sizes = [int(line.partition(" MB")[0].split()[-1]) for line in table]
    assert abs(sum(sizes) - made.budget // MIB) <= len(sizes)
    assert [line.split()[0] for line in table] == [
        *("held", "weights", "drafter", "captured", "further", "workspace", "KV", "free")
    ]


def test_what_was_measured_replaces_what_was_reserved() -> None:
    """Behind loading, others hold what nobody of ours does, and graphs' reserve is what captures did not take."""
    made = plan(card(80), DRAFT, config=ModelConfig(max_sequences=512))
    measured = DRAFT.measured(3 * GIB)
    ours = WEIGHTS + 3 * GIB + made.kv + made.drafter_kv(DRAFT) + GIB // 4
    settled = made.settled([measured], GIB // 4, 80 * GIB - ours - 2 * GIB)
    assert settled.others == 2 * GIB
    assert settled.reserves == Reserves(GIB - GIB // 4, GIB // 2)
    assert settled.free == made.free - 2 * GIB
    check_settled(settled)


def test_too_little_left_behind_loading_is_refused() -> None:
    """Drafters that took more than their files said, to the end of the card, do not go on to serve."""
    made = plan(card(80), DRAFT, config=ModelConfig(memory_share=0.99, max_sequences=512))
    settled = made.settled([DRAFT.measured(3 * GIB)], 0, GIB)
    with pytest.raises(ModelLoadError, match=r"are needed now that all is loaded, 81920 MB are there"):
        check_settled(settled)


@pytest.mark.parametrize(("text", "size"), [("2GB", 2 * GIB), ("512 MiB", 512 * MIB), (1000, 1000), ("1.5KB", 1536)])
def test_sizes_are_read(text: int | str, size: int) -> None:
    """Numbers and the usual units."""
    assert parse_bytes(text) == size


def test_a_size_that_is_none_is_refused() -> None:
    """The key, the value and what was expected."""
    with pytest.raises(ConfigError, match="kv_memory: 'much'; expected auto"):
        parse_bytes("much")


@pytest.fixture(scope="module")
def started() -> tuple[Assembled, list[str]]:
    """The house target with every drafter that has weights, and what its start told."""
    told: list[str] = []
    kinds = ("draft_model", "eagle3", "mtp", "medusa")
    config = EngineConfig(
        socket="",
        model=ModelConfig(max_sequences=2, max_model_len=1024, exactness="numeric", device="cpu"),
        drafters={kind: DrafterConfig(type=kind, path="house") for kind in kinds} | {"n": DrafterConfig(type="ngram")},
    )
    return assemble(config, told.append), told


@pytest.mark.parametrize("kind", ["draft_model", "eagle3", "mtp", "medusa"])
def test_sizes_from_files_are_those_that_are_loaded(started: tuple[Assembled, list[str]], kind: str) -> None:
    """KV per token is exact but for what has no page, and states at the ends of pages before one is drafted; a loaded
    drafter holds its tensors, or those and a packed copy."""
    host = started[0].host
    target = TargetSize(host.model.spec, find_model("house", "target"), 1)
    size = drafter_size(kind, DrafterConfig(type=kind, path="house"), target)
    assert size is not None
    assert size.basis == "files"
    held = started[0].engine.drafting.drafters[kind].memory()
    assert abs(held.kv - size.per_token * host.kv.num_slots) < 2**17
    assert size.weights <= held.weights <= 2.2 * size.weights


@pytest.mark.parametrize("kind", ["ngram", "suffix", "prediction", "replay", "layer_skip"])
def test_drafters_without_weights_have_no_size(kind: str) -> None:
    """Nothing is set aside for them."""
    assert drafter_size(kind, DrafterConfig(type=kind), TargetSize(SPEC, Path(), WEIGHTS)) is None


def test_a_head_that_is_not_here_yet_gets_a_reserve() -> None:
    """A layer, the products in front of it and half of an output matrix are set aside, KV of one layer and three states
    a page, for a head that is on the hub."""
    size = drafter_size("e", DrafterConfig(type="eagle3", path="org/head"), TargetSize(SPEC, Path(), WEIGHTS))
    weights = WEIGHTS // 32 + 4 * 4096 * 4096 * 2 + 128256 * 4096
    assert size == DrafterSize("e", weights, PER_TOKEN // 32 + 3 * 4096 * 2 // 64, "reserve")


def test_a_grown_draft_model_has_its_shapes_size() -> None:
    """What a draft model is grown into counts, not the small files: the 1B shape has 1.236 billion numbers."""
    config = DrafterConfig(type="draft_model", path="house", options={"grow": "llama-3.2-1b"})
    size = drafter_size("d", config, TargetSize(SPEC, Path(), WEIGHTS))
    assert size is not None
    assert size.weights / 2 == pytest.approx(1.236e9, rel=0.01)
    assert size.per_token == 16 * 2 * 8 * 64 * 2


def test_weight_files_are_measured_by_their_headers(tmp_path: Path) -> None:
    """Tensors count as stored or as converted, those that are left out not at all, a broken file as nothing."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3, 5), "mtp.b": torch.zeros(7, dtype=torch.bfloat16)}, file)
    assert weight_bytes(file) == 3 * 5 * 4 + 7 * 2
    assert weight_bytes(file, 2) == 3 * 5 * 2 + 7 * 2
    assert weight_bytes(file, 2, lambda name: name.startswith("mtp.")) == 14
    file.write_bytes(b"no weights")
    assert weight_bytes(file) == 0


def test_the_plan_is_told_at_start(started: tuple[Assembled, list[str]]) -> None:
    """Every start says where the memory went: others, weights, each drafter, KV and what is free."""
    told = started[1]
    start = next(i for i, line in enumerate(told) if line.startswith("memory of cpu: "))
    labels = [line.split()[0] for line in told[start + 1 :]]
    assert labels == ["held", "weights", *["drafter"] * 4, "KV", "free"]
    assert told[-2].endswith("34 pages, 2048 tokens")
    assert all(line.endswith("measured") for line in told[start + 3 : -2])

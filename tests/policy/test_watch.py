"""Hot reload."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from structlog.testing import capture_logs
from watchfiles._rust_notify import WatchfilesRustInternalError

from specproxy.errors import PolicyError
from specproxy.policy import watch as module
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.policy import PolicySet
from specproxy.policy.watch import LoadFailure, PolicyStore

if TYPE_CHECKING:
    from tests.policy.conftest import MakeFacts, WriteSet

FIRST = "routes: [{name: first}]\n"
SECOND = "routes: [{name: second}]\n"
BROKEN = "routes: [{name: second, speculat: off}]\n"


def name(store: PolicyStore) -> str:
    """The route of the set in force."""
    return store.current.routes[0].name


def test_a_broken_first_set_is_refused(write_set: WriteSet, catalogue: Catalogue) -> None:
    """There is no older one to fall back on."""
    with pytest.raises(PolicyError):
        PolicyStore(write_set(BROKEN), catalogue)


def test_reload_takes_the_new_set_or_keeps_the_old(
    write_set: WriteSet, catalogue: Catalogue, facts_of: MakeFacts
) -> None:
    """A broken directory changes nothing but the error; the next good one clears it."""
    store = PolicyStore(write_set(FIRST), catalogue)
    changes: list[PolicySet] = []
    failures: list[LoadFailure] = []
    store.subscribe(changes.append, failures.append)
    write_set(BROKEN)
    assert store.reload() is False
    assert name(store) == "first"
    assert store.failure is not None
    assert store.failure.time > 0
    assert store.error is not None
    assert 'did you mean "speculate"?' in store.error
    assert (len(changes), len(failures)) == (0, 1)
    write_set(SECOND)
    assert store.reload() is True
    assert (name(store), store.error, store.failure) == ("second", None, None)
    assert [item.routes[0].name for item in changes] == ["second"]
    assert store.decide(facts_of()).decision.route == "second"
    assert store.reload() is True
    assert len(changes) == 1


def test_what_the_engine_reports_is_checked_anew(write_set: WriteSet, catalogue: Catalogue) -> None:
    """A set that names a drafter which is not loaded stays out; fingerprints make new revisions."""
    store = PolicyStore(write_set("routes: [{name: r, speculate: {drafters: ngram}}]\n"), catalogue)
    before = store.current.hash
    assert store.use(msgspec.structs.replace(catalogue, drafters=())) is False
    assert store.current.hash == before
    newer = tuple(msgspec.structs.replace(spec, fingerprint="new") for spec in catalogue.drafters)
    assert store.use(msgspec.structs.replace(catalogue, drafters=newer)) is True
    assert store.current.hash != before


def test_regex_timeouts_are_counted_over_reloads(
    write_set: WriteSet, catalogue: Catalogue, facts_of: MakeFacts
) -> None:
    """A counter never goes back."""
    slow = "routes: [{name: slow, match: {prompt: '/(?:a|aa|a.)+(?:b|bb)+c$/'}}, {name: rest}]\n"
    store = PolicyStore(write_set(slow), catalogue)
    facts = facts_of("a" * 20000 + "b" * 20000)
    assert store.decide(facts).decision.route == "rest"
    assert store.regex_timeouts == 1
    store.reload()
    assert store.regex_timeouts == 1


@contextlib.asynccontextmanager
async def watching(store: PolicyStore) -> AsyncIterator[None]:
    """The watch, running."""
    task = asyncio.create_task(store.watch())
    await asyncio.sleep(0.3)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds; the test's own limit ends it."""
    while not condition():  # noqa: ASYNC110 - files on disk set no event
        await asyncio.sleep(0.02)


async def test_a_saved_file_is_taken_over(write_set: WriteSet, catalogue: Catalogue) -> None:
    """And a broken one is refused, and a repaired one taken."""
    store = PolicyStore(write_set(FIRST), catalogue)
    async with watching(store):
        write_set(SECOND)
        await until(lambda: name(store) == "second")
        write_set(BROKEN)
        await until(lambda: store.error is not None)
        assert name(store) == "second"
        write_set(FIRST)
        await until(lambda: name(store) == "first")
        assert store.error is None


async def test_a_kubernetes_swap_of_links_is_noticed(tmp_path: Path, catalogue: Catalogue) -> None:
    """A mounted ConfigMap changes by renaming ``..data``; the files themselves are links through it."""
    for version, text in (("..1", FIRST), ("..2", SECOND)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "p.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "p.yaml").symlink_to("..data/p.yaml")
    store = PolicyStore(tmp_path, catalogue)
    async with watching(store):
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        await until(lambda: name(store) == "second")


async def test_files_that_lead_elsewhere_are_noticed(tmp_path: Path, catalogue: Catalogue) -> None:
    """No event tells of a change behind a link; looking every now and then does."""
    (tmp_path / "elsewhere.yaml").write_text(FIRST)
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "p.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    store = PolicyStore(folder, catalogue)
    async with watching(store):
        (tmp_path / "elsewhere.yaml").write_text(SECOND)
        await until(lambda: name(store) == "second")


async def test_a_folder_that_goes_away_may_come_back(tmp_path: Path, catalogue: Catalogue) -> None:
    """Meanwhile the last set serves, and the error says what is missing."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "p.yaml").write_text(FIRST)
    store = PolicyStore(folder, catalogue)
    async with watching(store):
        folder.rename(tmp_path / "away")
        await until(lambda: store.error is not None)
        assert name(store) == "first"
        folder.mkdir()
        (folder / "p.yaml").write_text(SECOND)
        await until(lambda: name(store) == "second")


@pytest.mark.parametrize("fault", [WatchfilesRustInternalError("Too many open files"), OSError("no watches are left")])
async def test_where_the_system_cannot_watch_the_files_are_looked_at(
    write_set: WriteSet, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """As often as is said once in the log; and events are used again as soon as there are any."""
    left = 3

    def watched(*arguments: object, **options: object) -> AsyncIterator[set[object]]:
        nonlocal left
        left -= 1
        if left >= 0:
            raise fault
        return awatch(*arguments, **options)  # type: ignore[arg-type]

    awatch = module.awatch
    monkeypatch.setattr(module, "awatch", watched)
    monkeypatch.setattr(module, "POLL_S", 0.05)
    store = PolicyStore(write_set(FIRST), catalogue)
    with capture_logs() as logs:
        task = asyncio.create_task(store.watch())
        await asyncio.sleep(0)
        write_set(SECOND)
        await until(lambda: name(store) == "second")
        assert left >= 0
        await until(lambda: left < 0)
        write_set(FIRST)
        await until(lambda: name(store) == "first")
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert [(entry["log_level"], entry["reason"]) for entry in logs] == [("warning", str(fault))]

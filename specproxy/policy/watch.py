"""PolicyStore: the policy set in force, replaced when its files change and never by a broken one.

A stream keeps the Decision that it began with; whoever asks next gets the new set.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from msgspec import Struct
from watchfiles import awatch
from watchfiles._rust_notify import WatchfilesRustInternalError

from specproxy.errors import PolicyError
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.facts import Facts
from specproxy.policy.policy import PolicySet, Verdict
from specproxy.policy.reading import policy_files

DEBOUNCE_MS = 300
"""Changes this close together are one: editors write a file in several steps."""

POLL_S = 2.0
"""How often the files are looked at where the system reports no change: network mounts, links to elsewhere."""


class LoadFailure(Struct, frozen=True):
    """Why the files on disk are not in force. ``problems``: one line each; ``time``: Unix seconds."""

    problems: tuple[str, ...]
    time: float

    @property
    def text(self) -> str:
        """All problems, one a line."""
        return "\n".join(self.problems)


OnChange = Callable[[PolicySet], None]
OnFailure = Callable[[LoadFailure], None]
Signature = tuple[tuple[str, int, int, int], ...]


class PolicyStore:
    """Holds the set in force. Used from the event loop's thread only.

    ``current`` decides; ``failure`` is set while the files on disk are broken and an older set serves.
    """

    def __init__(self, directory: Path, catalogue: Catalogue) -> None:
        """Load the first set. Raises PolicyError: there is no older one to fall back on."""
        self.directory = directory
        self._catalogue = catalogue
        self._seen = _signature(directory)
        self.current = PolicySet.load(directory, catalogue)
        self.failure: LoadFailure | None = None
        self._earlier_timeouts = 0
        self._on_change: list[OnChange] = []
        self._on_failure: list[OnFailure] = []

    @property
    def error(self) -> str | None:
        """What is wrong with the files on disk, or ``None``."""
        return self.failure.text if self.failure is not None else None

    @property
    def regex_timeouts(self) -> int:
        """Searches that ran out of time since the start, over all sets."""
        return self._earlier_timeouts + self.current.regex_timeouts

    def decide(self, facts: Facts) -> Verdict:
        """The set in force decides. Raises InvalidRequest as PolicySet.decide does."""
        return self.current.decide(facts)

    def subscribe(self, on_change: OnChange | None = None, on_failure: OnFailure | None = None) -> None:
        """Call ``on_change`` with every set that comes into force from now on, ``on_failure`` with every refusal."""
        if on_change is not None:
            self._on_change.append(on_change)
        if on_failure is not None:
            self._on_failure.append(on_failure)

    def reload(self) -> bool:
        """Read the files again, now (SIGHUP). False where they are broken; the set in force then stays."""
        self._seen = _signature(self.directory)
        return self._install(_load(self.directory, self._catalogue))

    def use(self, catalogue: Catalogue) -> bool:
        """Check and compile again with what the engine now reports. False as ``reload`` says."""
        self._catalogue = catalogue
        return self.reload()

    async def watch(self) -> None:
        """Reload on every change of a policy file, until cancelled. Where the system cannot watch the folder, such as
        where inotify is exhausted, the files are looked at every POLL_S seconds until it can."""
        told = False
        while True:
            try:
                changes = awatch(
                    self.directory,
                    watch_filter=None,
                    debounce=DEBOUNCE_MS,
                    recursive=False,
                    rust_timeout=int(POLL_S * 1000),
                    yield_on_timeout=True,
                )
                async for _ in changes:
                    await self._refresh()
            except (OSError, WatchfilesRustInternalError) as error:
                # No watches or handles are left; or the folder itself is gone, and may come back under the same name.
                if not told:
                    structlog.get_logger().warning(
                        "policy files cannot be watched; they are looked at every now and then",
                        folder=str(self.directory),
                        seconds=POLL_S,
                        reason=str(error),
                    )
                    told = True
                with contextlib.suppress(OSError):
                    await self._refresh()
                await asyncio.sleep(POLL_S)

    async def _refresh(self) -> None:
        """Reload if any file differs from what was read last."""
        seen = await asyncio.to_thread(_signature, self.directory)
        if seen == self._seen:
            return
        self._seen = seen
        self._install(await asyncio.to_thread(_load, self.directory, self._catalogue))

    def _install(self, loaded: PolicySet | LoadFailure) -> bool:
        if isinstance(loaded, LoadFailure):
            self.failure = loaded
            for told in self._on_failure:
                told(loaded)
            return False
        changed = loaded.hash != self.current.hash
        self._earlier_timeouts += self.current.regex_timeouts
        self.current, self.failure = loaded, None
        if changed:
            for listener in self._on_change:
                listener(loaded)
        return True


def _load(directory: Path, catalogue: Catalogue) -> PolicySet | LoadFailure:
    try:
        return PolicySet.load(directory, catalogue)
    except PolicyError as error:
        return LoadFailure(tuple(error.problems), time.time())


def _signature(directory: Path) -> Signature:
    """What tells one state of the files from another: name, inode, size and time of what each name leads to.

    Following links is what notices Kubernetes' swap of ``..data``.
    """
    found = []
    for path in policy_files(directory):
        try:
            status = path.stat()
        except OSError:
            found.append((path.name, 0, 0, 0))
        else:
            found.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)

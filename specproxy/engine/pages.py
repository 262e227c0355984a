"""Pages of KV: reference counts, prefix hashes, and which page to hand out next.

A page holds ``page_size`` consecutive tokens of one sequence, or of several that share a prefix. A page is shared only
when it is full of committed tokens, under a hash of everything before and in it, the way its KV came about (prompt or
generated), and the tenant's salt. Pages with no user left keep their content and are taken back in order of disuse.

Neighbouring pages are preferred: keys that lie side by side are read without a copy.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence

from specproxy.kernels.attention import KVBuffers


def page_hash(parent: bytes, tokens: Sequence[int], provenance: str, salt: str) -> bytes:
    """Identity of a full page. ``parent`` is the hash of the page before, ``b""`` for the first."""
    digest = hashlib.blake2b(parent, digest_size=16, key=salt.encode()[:64])
    digest.update(provenance.encode())
    digest.update(array("q", tokens).tobytes())
    return digest.digest()


class PagePool:
    """Owns the page numbers ``RESERVED_PAGES .. num_pages``; the KV itself is in the buffers of target and drafters.

    ``on_allocate`` is called with every page that changes hands, before its new owner writes to it.
    """

    def __init__(self, num_pages: int, page_size: int, on_allocate: Callable[[int], None]) -> None:
        self.page_size = page_size
        self.first = KVBuffers.RESERVED_PAGES
        self.total = num_pages - self.first
        self._limit = num_pages
        self._on_allocate = on_allocate
        self._references = [0] * num_pages
        self._free = bytearray(num_pages)
        self._free[self.first :] = b"\1" * self.total
        self._num_free = self.total
        self._by_hash: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that can be handed out now, idle cached ones included."""
        return self._num_free + len(self._idle)

    @property
    def used(self) -> int:
        """Pages that a sequence holds."""
        return self.total - self.available

    @property
    def cached(self) -> int:
        """Idle pages whose content can still be found."""
        return len(self._idle)

    def allocate(self, after: int | None) -> int | None:
        """A page for one owner, the one behind ``after`` where possible; ``None`` when every page is held."""
        page = None
        if after is not None and after + 1 < self._limit:
            page = after + 1 if self._free[after + 1] or after + 1 in self._idle else None
        if page is None:
            if self._num_free:
                page = self._start_of_longest_run()
            elif self._idle:
                page = next(iter(self._idle))
            else:
                return None
        if self._free[page]:
            self._free[page] = 0
            self._num_free -= 1
        else:
            del self._idle[page]
            self._forget(page)
        self._references[page] = 1
        self._on_allocate(page)
        return page

    def release(self, page: int) -> None:
        """One owner less. The last one leaves the page idle when its content is known, free otherwise."""
        self._references[page] -= 1
        if self._references[page] == 0:
            if page in self._hash_of:
                self._idle[page] = None
            else:
                self._free[page] = 1
                self._num_free += 1

    def share(self, key: bytes) -> int | None:
        """The page known under ``key`` with one more owner, or ``None``."""
        page = self._by_hash.get(key)
        if page is not None:
            if self._references[page] == 0:
                del self._idle[page]
            self._references[page] += 1
        return page

    def register(self, page: int, key: bytes) -> None:
        """Make the content of a full page findable. An equal page that is already known stays the known one."""
        if key not in self._by_hash and page not in self._hash_of:
            self._by_hash[key] = page
            self._hash_of[page] = key

    def forget_idle(self) -> None:
        """Drop all cached content that nobody holds."""
        while self._idle:
            page, _ = self._idle.popitem()
            self._forget(page)
            self._free[page] = 1
            self._num_free += 1

    def _forget(self, page: int) -> None:
        key = self._hash_of.pop(page, None)
        if key is not None:
            del self._by_hash[key]

    def _start_of_longest_run(self) -> int:
        """First page of the longest stretch of free pages: a new sequence has room to grow there."""
        runs = bytes(self._free).split(b"\0")
        longest = max(runs, key=len)
        start = 0
        for run in runs:
            if run is longest:
                break
            start += len(run) + 1
        return start + (len(longest) // 2 if start > self.first or len(longest) < self.total else 0)

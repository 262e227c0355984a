"""Pages of KV: reference counts, prefix hashes, and which page to hand out next.

A page holds ``page_size`` consecutive tokens of one sequence, or of several that share a prefix. A page is shared only
when it is full of committed tokens, under a hash of everything before and in it, the way its KV came about (prompt or
generated), and the tenant's salt. Pages with no user left keep their content and are taken back in order of disuse.

A sequence starts at a slab, a stretch of pages as long as a sequence can get, and grows into the pages behind: keys
that lie side by side are read without a copy, and sequences at even distances are read in one call.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence

from specproxy.kernels.paged import KVBuffers


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

    def __init__(self, num_pages: int, page_size: int, slab: int, on_allocate: Callable[[int], None]) -> None:
        """``slab``: pages of a sequence of full length."""
        self.page_size = page_size
        self._slab = slab
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
        if not self.available:
            return None
        if after is None:
            page = self._start()
        elif after + 1 < self._limit and self._is_available(after + 1):
            page = after + 1
        else:
            page = self._anywhere()
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

    def _is_available(self, page: int) -> bool:
        return bool(self._free[page]) or page in self._idle

    def _start(self) -> int:
        """Where a new sequence begins: the first slab without content, else the one whose content was idle longest."""
        for start in range(self.first, self._limit - self._slab + 1, self._slab):
            if self._free.find(0, start, start + self._slab) < 0:
                return start
        for page in self._idle:
            start = self.first + (page - self.first) // self._slab * self._slab
            if all(map(self._is_available, range(start, min(start + self._slab, self._limit)))):
                return start
        return self._anywhere()

    def _anywhere(self) -> int:
        """Any page: a free one from the far end, where slabs are taken last, else the one idle longest."""
        return self._free.rfind(1) if self._num_free else next(iter(self._idle))

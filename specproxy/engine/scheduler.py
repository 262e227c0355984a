"""Who runs: admission, prefix sharing, pages, preemption. Plain bookkeeping; no tensor is touched here.

Two classes of work: users', and background (shadows), which gives way: ``background.py`` says which steps it takes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows

from specproxy.engine.background import Background
from specproxy.engine.pages import PagePool, page_hash
from specproxy.engine.sequence import Sequence


class Scheduler:
    """Queues and page tables of all sequences.

    ``on_evict`` is called with a sequence whose KV is given up (preempted or ended), so that drafters forget theirs.
    ``one_provenance``: pages of generated tokens may be shared like prompt pages. ``clock``, in seconds: it
    measures what background work takes of the time.
    """

    def __init__(
        self,
        pool: PagePool,
        max_sequences: int,
        one_provenance: bool,
        on_evict: Callable[[Sequence], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self._max_sequences = max_sequences
        self._one_provenance = one_provenance
        self._on_evict = on_evict
        self._waiting: dict[bool, deque[Sequence]] = {True: deque(), False: deque()}
        self._behind = Background(clock)
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def waiting(self) -> int:
        """User sequences that wait."""
        return len(self._waiting[True])

    @property
    def background(self) -> int:
        """Background sequences that wait or run."""
        return len(self._waiting[False]) + sum(not s.user for s in self.running)

    @property
    def serves_users(self) -> bool:
        """Whether a user's sequence waits or runs."""
        return bool(self._waiting[True]) or self._user_work()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.running or self._waiting[True] or self._waiting[False])

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._waiting[sequence.user].append(sequence)

    def find(self, seq_id: str) -> Sequence | None:
        """The sequence of that id, waiting or running."""
        for group in (self.running, self._waiting[True], self._waiting[False]):
            for sequence in group:
                if sequence.id == seq_id:
                    return sequence
        return None

    def all(self) -> list[Sequence]:
        """Every sequence, running ones first."""
        return [*self.running, *self._waiting[True], *self._waiting[False]]

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its pages."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        else:
            self._waiting[sequence.user].remove(sequence)

    def admit(self) -> list[Sequence]:
        """Start waiting sequences while there is room, which background work makes for users; returns those that start
        for the first time."""
        fresh = []
        for user in (True, False):
            queue = self._waiting[user]
            while queue and self._make_room(queue[0]):
                sequence = queue.popleft()
                self.running.append(sequence)
                if not sequence.started:
                    sequence.started = True
                    fresh.append(sequence)
            if queue:
                break
        return fresh

    @property
    def due(self) -> bool:
        """Whether a prompt waits that could be started or go on now."""
        queue = self._waiting[True] or self._waiting[False]
        could_start = bool(queue) and (self._has_room(queue[0]) or bool(self._in_the_way(queue[0])))
        return could_start or self.next_prefill() is not None

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether there is a place for it, and its known tokens and one more fit, with a page to spare for everyone who
        runs."""
        needed = len(sequence.tokens) // self.pool.page_size + 1
        fits = self.pool.available >= needed + len(self.running) or not self.running
        return fits and len(self.running) < self._max_sequences

    def _make_room(self, sequence: Sequence) -> bool:
        """Whether it may start, now that background work has gone that stood in a user's way."""
        while not self._has_room(sequence):
            others = self._in_the_way(sequence)
            if not others:
                return False
            self.preempt(max(others, key=lambda s: s.arrival))
        return True

    def _in_the_way(self, sequence: Sequence) -> list[Sequence]:
        """Who runs and has to give way to it."""
        return [s for s in self.running if not s.user] if sequence.user else []

    def choose(self) -> None:
        """Decide whose step comes next, users' or background work's; it holds until this is called again."""
        self._behind.choose(self.running)

    def began(self, sequences: Rows[Sequence]) -> None:
        """A step of these begins; the one before it is over."""
        self._behind.began(sequences, self.running)

    def next_prefill(self) -> Sequence | None:
        """The sequence whose prompt goes on, in order of admission."""
        return next((s for s in self._behind.group(self.running) if s.prefilling), None)

    def decoding(self) -> list[Sequence]:
        """Sequences that take part in the next decode step."""
        return [s for s in self._behind.group(self.running) if not s.prefilling]

    def _user_work(self) -> bool:
        return any(s.user for s in self.running)

    def share_prefix(self, sequence: Sequence) -> None:
        """Take over cached pages of the longest known prefix; at least the last prompt token is left to compute."""
        if sequence.computed or sequence.submission.params.prompt_logprobs is not None:
            return
        size, salt = self.pool.page_size, sequence.submission.salt
        self.prefix_queries += sequence.num_prompt
        parent = b""
        for end in range(size, sequence.num_prompt, size):
            parent = page_hash(parent, sequence.tokens[end - size : end], "prompt", salt)
            page = self.pool.share(parent)
            if page is None:
                break
            sequence.table.append(page)
            sequence.hashes.append(parent)
            sequence.computed = end
        self.prefix_hits += sequence.computed
        if not sequence.num_output:
            sequence.stats.cached_tokens = sequence.computed

    def reserve(self, sequence: Sequence, tokens: int) -> bool:
        """Pages for the first ``tokens`` positions, preempting others where needed; false: it was preempted itself."""
        table, pool = sequence.table, self.pool
        while len(table) * pool.page_size < tokens:
            page = pool.allocate(table[-1] if table else None)
            if page is not None:
                table.append(page)
                continue
            victim = self._victim()
            self.preempt(victim)
            if victim is sequence:
                return False
        return True

    def try_reserve(self, sequence: Sequence, tokens: int) -> int:
        """Pages for up to ``tokens`` positions without preempting anyone; how many positions there are pages for."""
        table, pool = sequence.table, self.pool
        while len(table) * pool.page_size < tokens:
            page = pool.allocate(table[-1] if table else None)
            if page is None:
                break
            table.append(page)
        return min(tokens, len(table) * pool.page_size)

    def _victim(self) -> Sequence:
        """Background before users, the latest arrival first: the oldest always makes progress."""
        return max(self.running, key=lambda s: (not s.user, s.arrival))

    def preempt(self, sequence: Sequence) -> None:
        """Give up a running sequence's KV; it will be recomputed, which changes no token."""
        self.running.remove(sequence)
        self._free(sequence)
        sequence.stats.preemptions += 1
        self.preemptions += 1
        self._waiting[sequence.user].appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        self._on_evict(sequence)
        for page in reversed(sequence.table):
            self.pool.release(page)
        sequence.table.clear()
        sequence.hashes.clear()
        sequence.computed = 0

    def publish(self, sequence: Sequence) -> None:
        """Make the sequence's full pages findable: prompt pages, and generated ones where the KV is proven the same."""
        size, hashes = self.pool.page_size, sequence.hashes
        limit = sequence.computed if self._one_provenance else min(sequence.computed, sequence.num_prompt)
        while (len(hashes) + 1) * size <= limit:
            end = (len(hashes) + 1) * size
            parent = hashes[-1] if hashes else b""
            hashes.append(page_hash(parent, sequence.tokens[end - size : end], "prompt", sequence.submission.salt))
            self.pool.register(sequence.table[len(hashes) - 1], hashes[-1])

"""What the controller remembers between steps: how each drafter fared in each group of rows, and who was tried when.

Estimates go stale for drafters that are not used. They are tried again (*probes*) from a budget: a share of
PROBE_SHARE of the time may be lost to probes, no matter how many drafters there are, and a drafter whose probes fail is
tried more rarely. A group saves credit with every step and pays for a probe what it can lose at worst; what succeeds
is paid back.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from specproxy.engine.acceptance import Acceptance

PROBE_SHARE = 0.008
PROBE_CREDIT = 0.5
"""Steps' worth of probes that may be saved up."""
PROBE_EVERY = 16
PROBE_RARELY = 48
"""Rows between two probes of a drafter: at first, and at most after failures. Changes of the text must be found soon:
in simulation a limit of 512 cost 2 to 4 % of speed on switching workloads, and the budget binds anyway."""
PROBE_AGE = 3
"""A probe counts for more than old evidence: so many observations' worth of the past is forgotten with it."""
FRESH_S = 60.0
"""Seconds after which a drafter that failed its probes is tried again as often as at first: traffic changes."""
MAX_GROUPS = 1024
DEFAULT_PRIOR = 0.7

USUAL_LENGTH = 96.0
"""Tokens of an answer, before any of its group has ended."""
LENGTH_RATE = 0.1
"""How fast the estimate of an answer's length follows the answers."""
SPREAD_RATE = 0.05
"""How fast the estimate of a tree's nodes a level follows what is drafted."""


@dataclass(slots=True)
class Track:
    """One drafter at one confidence in one group.

    ``last_k``: as chosen last. ``idle``: rows since it was observed or chosen; from ``interval`` on a probe is due.
    ``probing``: a probe's result is awaited, made at ``probed_at`` (seconds) for ``stake`` (steps). ``spread``: nodes a
    level that its trees have on average, 0 where none was seen.
    """

    acceptance: Acceptance
    last_k: int = 0
    idle: int = 0
    interval: int = PROBE_EVERY
    probing: bool = False
    probed_at: float = 0.0
    stake: float = 0.0
    spread: float = 0.0

    def grown(self, nodes: int, levels: int) -> None:
        """It drafted a tree of so many nodes on so many levels."""
        density = nodes / max(1, levels)
        self.spread = self.spread + SPREAD_RATE * (density - self.spread) if self.spread else density

    def due(self, now: float) -> bool:
        """Whether to try it again at ``now`` (seconds)."""
        return self.idle >= self.interval or (self.idle >= PROBE_EVERY and now - self.probed_at > FRESH_S)

    def probe(self, now: float, stake: float) -> None:
        """It is tried at ``now`` (seconds), for ``stake`` (steps)."""
        self.probing, self.probed_at, self.stake = True, now, stake

    def chosen(self, k: int) -> None:
        """It won, with K = ``k``."""
        self.last_k = k
        self.idle = 0
        self.interval = PROBE_EVERY

    def observe(self, drafted: int, accepted: int) -> float:
        """Of a chain of ``drafted`` tokens ``accepted`` were. Returns the stake that comes back, in steps."""
        refund = 0.0
        if self.probing:
            self.probing = False
            self.acceptance.age(PROBE_AGE)
            if accepted:
                refund = self.stake
                self.interval = max(2, self.interval // 4)
            else:
                self.interval = min(PROBE_RARELY, self.interval * 2)
        self.acceptance.observe(drafted, accepted)
        self.idle = 0
        return refund


@dataclass(slots=True)
class Group:
    """Rows that share statistics. ``last``: the drafter used last (``None``: plain). ``credit``: steps that may yet be
    lost to probes. ``length``: tokens of an answer on average."""

    tracks: dict[tuple[str, int], Track] = field(default_factory=dict)
    last: str | None = None
    credit: float = 0.0
    length: float = USUAL_LENGTH

    def left(self, so_far: int, most: int) -> float:
        """Tokens that an answer of ``so_far`` tokens probably goes on for, ``most`` at most. One that is longer than
        usual goes on for as long as a quarter of the usual."""
        return min(float(most), max(self.length - so_far, self.length / 4))

    def ended(self, tokens: int) -> None:
        """An answer had so many tokens."""
        self.length += LENGTH_RATE * (tokens - self.length)

    def track(self, drafter: str, bucket: int, prior: float = DEFAULT_PRIOR) -> Track:
        """The track of a drafter at a confidence; ``prior`` where it is new."""
        found = self.tracks.get((drafter, bucket))
        if found is None:
            found = self.tracks[drafter, bucket] = Track(Acceptance(prior))
        return found

    def earn(self, steps: float) -> None:
        """Save up for probes."""
        self.credit = min(PROBE_CREDIT, self.credit + steps)


class Groups:
    """All groups, at most MAX_GROUPS: those unused for longest go first."""

    def __init__(self) -> None:
        self._groups: OrderedDict[str, Group] = OrderedDict()

    def __len__(self) -> int:
        return len(self._groups)

    def __contains__(self, name: str) -> bool:
        return name in self._groups

    def get(self, name: str) -> Group:
        """The group of this name, made where there is none."""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group()
            if len(self._groups) > MAX_GROUPS:
                self._groups.popitem(last=False)
        else:
            self._groups.move_to_end(name)
        return group

    def forget(self, drafter: str) -> None:
        """Drop what is known of a drafter."""
        for group in self._groups.values():
            for key in [key for key in group.tracks if key[0] == drafter]:
                del group.tracks[key]

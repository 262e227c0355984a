"""A process that writes transitions as fast as it can, to be killed: ``python -m tests.gate.writer FILE``.

It prints ``open`` before it opens the store, and after each commit the number of log entries that must be there from
then on. Each revision goes draft → validated → shadow → canary → active; with the last move the one before is
superseded, in the same commit. In shadow a kill switch is thrown, in canary it is lifted, each with its line in the
log. The evidence of a revision counts its versions, so that it shows whether both were written together.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import msgspec
from msgspec.structs import replace

from specproxy.gate.evidence import no_evidence
from specproxy.gate.kills import Kill
from specproxy.gate.orders import hand_over
from specproxy.gate.rules import Rules
from specproxy.gate.sqlite_store import SqliteStore
from specproxy.gate.states import GateState, Move, Phase, new_state
from specproxy.gate.store import Revision, Transition
from specproxy.policy.schema import Settings

ROUTE = "default"
NEXT: dict[Phase, Phase] = {"draft": "validated", "validated": "shadow", "shadow": "canary", "canary": "active"}

OFF, ON = "switched off", "switched on again"
"""Reasons in the log."""


def transition(moved: Move) -> Transition:
    """The move with evidence that counts the version it is written with."""
    evidence = no_evidence(Rules())
    evidence.live.num_candidate = moved.before.version + 1
    return Transition(moved, "writer", time.time(), evidence)


def hand_in(store: SqliteStore, number: int) -> None:
    """A new revision."""
    name = hashlib.sha256(str(number).encode()).hexdigest()
    state = new_state(ROUTE, name, time.time())
    settings = msgspec.to_builtins(Settings())
    content = Revision(
        route=ROUTE, revision=name, position=0, match={}, settings=settings, drafters={}, created=state.created
    )
    store.submit(content, transition(Move(state, state, "new")))


def advance(store: SqliteStore, state: GateState, serving: GateState | None) -> int:
    """The next phase of ``state``; how many entries that wrote."""
    moved = Move(state, replace(state, phase=NEXT[state.phase]), "next")
    moves = hand_over(moved, serving, time.time()) if moved.after.phase == "active" else [moved]
    store.commit([transition(move) for move in moves])
    return len(moves)


def switch(store: SqliteStore, state: GateState) -> int:
    """Throw or lift the switch, where it is not as the phase of ``state`` wants it; how many entries that wrote."""
    is_off = bool(store.kills())
    if state.phase == "shadow" and not is_off:
        kills, reason = [Kill(ROUTE, None, state.revision, "writer", time.time())], OFF
    elif state.phase == "canary" and is_off:
        kills, reason = [], ON
    else:
        return 0
    store.commit([transition(Move(state, state, reason))], kills)
    return 1


def main(path: Path) -> None:
    """Write until killed."""
    print("open", flush=True)
    store = SqliteStore(path)
    entries = store.verify()
    while True:
        states = store.states(ROUTE)
        waiting = [state for state in states if state.phase in NEXT]
        serving = [state for state in states if state.phase == "active"]
        if waiting:
            entries += switch(store, waiting[0]) or advance(store, waiting[0], serving[0] if serving else None)
        else:
            hand_in(store, len(states))
            entries += 1
        print(entries, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

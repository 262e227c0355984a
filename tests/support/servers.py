"""Flags of servers for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specproxy.drafters.replay import write_scripts

POLICY = """\
version: 1
defaults: {override: true, hold_out: 0, speculate: {drafters: auto, k: auto}}
routes: [{name: all}]
"""


def every_drafter(folder: Path, said: Sequence[tuple[Sequence[int], Sequence[int]]] = ()) -> list[str]:
    """Flags of a server with every drafter and one route, where a request may choose; files go into ``folder``.

    ``said``: (prompt, output) pairs that the replay drafter knows; of others it knows the prediction.
    """
    scripts, policies = folder / "scripts.json", folder / "policies"
    write_scripts(scripts, said)
    policies.mkdir()
    (policies / "all.yaml").write_text(POLICY)
    drafters = ["ngram=ngram", "prediction=prediction", "draft_model=draft_model:house", f"replay=replay:{scripts}"]
    return ["--policies", str(policies), *(part for drafter in drafters for part in ("--drafter", drafter))]

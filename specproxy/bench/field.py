"""The table of the field: every method beside every category, and what each method costs and how deep it reaches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.markup import escape
from rich.table import Table

from specproxy.bench.arms import AUTO
from specproxy.bench.summary import ALL, POSITIONS, ArmSummary, CategorySummary
from specproxy.config.schema import DrafterConfig, StartConfig
from specproxy.vocabulary import DrafterInfo

FIELD_ARMS = (
    "draft_model",
    "ngram",
    "suffix",
    "eagle3",
    "eagle3;width=3",
    "medusa",
    "medusa;width=3",
    "mtp",
    "layer_skip",
    "auto",
)
"""Every kind of drafter that the house model has, heads as chains and as trees, and the controller among all."""

_MIB = 2**20


def field_arms(drafters: Collection[str], k: int | None) -> list[str]:
    """The arms of the field that these drafters can serve. ``k`` fixes the levels of all but auto: then every draft is
    as long, and acceptance by position is exact."""
    found = [name for name in FIELD_ARMS if name == AUTO or name.partition(";")[0] in drafters]
    return [name if k is None or name == AUTO else fix_levels(name, k) for name in found]


def fix_levels(arm: str, k: int) -> str:
    """The arm with ``;k=`` where it belongs."""
    drafter, semicolon, rest = arm.partition(";")
    return f"{drafter};k={k}{semicolon}{rest}"


def field_config() -> Path:
    """The start configuration in which all of them are declared."""
    return Path(str(resources.files("specproxy.bench"))) / "data" / "field.yaml"


def drop_missing(config: StartConfig) -> list[str]:
    """Take out the drafters whose bundled weights are not in this copy of the package; their names."""
    missing = [name for name, drafter in config.drafters.items() if not _is_there(drafter)]
    for name in missing:
        del config.drafters[name]
    return missing


def _is_there(drafter: DrafterConfig) -> bool:
    from specproxy.models.loading import BUNDLED, find_model  # torch: seconds that a run over HTTP need not wait for

    roles = {"draft_model": "draft", "eagle3": "eagle3", "medusa": "medusa", "mtp": "target"}
    role = roles.get(drafter.type)
    return drafter.path != BUNDLED or role is None or (find_model(BUNDLED, role) / "config.json").is_file()


def drafters_of(facts: dict[str, Any]) -> list[DrafterInfo]:
    """The drafters that the measured server says it has loaded; none where it does not say."""
    said = facts["server"].get("bitwise") or facts["server"].get("given") or {}
    engine = said.get("engine")
    listed = engine.get("drafters") if isinstance(engine, dict) else None
    try:
        return msgspec.convert(listed or [], list[DrafterInfo])
    except msgspec.ValidationError:
        return []


class Grid(NamedTuple):
    """A table as text. The first column is left-aligned, the others right."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def rich(self) -> Table:
        """For a console."""
        table = Table(title=escape(self.title), title_justify="left")
        for i, name in enumerate(self.head):
            table.add_column(name, justify="right" if i else "left", no_wrap=i == 0)
        for row in self.rows:
            table.add_row(*(escape(cell) for cell in row))
        return table

    def markdown(self) -> str:
        """For a document."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        cells = [[cell.replace("|", r"\|").replace("\n", "<br>") for cell in line] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def methods_by_category(summaries: Sequence[CategorySummary]) -> Grid:
    """A row a method, a column a category: ratio to plain with the spread of single prompts, then acceptance and
    tokens a step."""
    names = list(dict.fromkeys(arm.arm for summary in summaries for arm in summary.arms))
    found = {(summary.category, arm.arm): arm for summary in summaries for arm in summary.arms}
    head = ["method", *(f"{summary.category} ({summary.prompts})" for summary in summaries)]
    rows = []
    for name in names:
        arms = [found.get((summary.category, name)) for summary in summaries]
        rows.append([name, *("-" if arm is None else _cell(arm) for arm in arms)])
    title = "ratio to plain [p10-p90 of single prompts] (plain: tok/s); accepted drafts, tokens per target step"
    return Grid(title, head, rows)


def _cell(arm: ArmSummary) -> str:
    speed = f"{arm.tokens_per_s:.0f} tok/s"
    if arm.ratio is not None:
        speed = f"{arm.ratio.mean:.2f} [{arm.ratio.p10:.2f}-{arm.ratio.p90:.2f}]"
    if arm.acceptance is None:
        return speed
    length = "" if arm.accepted_length is None else f", {arm.accepted_length:.2f}"
    return f"{speed}\n{arm.acceptance:.0%}{length}"


def methods_overall(summaries: Sequence[CategorySummary]) -> Grid:
    """A row a method: memory beside the target, tokens a step, acceptance at each position of a draft."""
    whole = next((summary for summary in summaries if summary.category == ALL), summaries[0])
    head = ["method", "weights, MiB", "KV, MiB", "len", "accept", *(str(i + 1) for i in range(POSITIONS))]
    rows = []
    for arm in whole.arms:
        if not arm.conditional and arm.weight_bytes is None:
            continue
        memory = ["-" if held is None else f"{held / _MIB:.1f}" for held in (arm.weight_bytes, arm.kv_bytes)]
        length = "-" if arm.accepted_length is None else f"{arm.accepted_length:.2f}"
        by_position = arm.conditional or [None] * POSITIONS
        rates = ["-" if rate is None else f"{rate:.0%}" for rate in (arm.acceptance, *by_position)]
        rows.append([arm.arm, *memory, length, *rates])
    title = "memory beside the target; acceptance by position, where those before were accepted"
    return Grid(title, head, rows)

"""The sweep as a picture, with matplotlib, which is an extra."""

from __future__ import annotations

import math
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from specproxy.errors import StartError

if TYPE_CHECKING:
    from specproxy.bench.sweep import Sweep

INCHES = (12.0, 5.0)
DOTS_PER_INCH = 120
TREE_STYLES = {1: "-", 2: "--", 3: "-.", 4: ":"}
"""Line style by width: a drafter keeps its colour, its trees are broken."""


def check_can_draw() -> None:
    """Raises StartError where matplotlib is missing: before anything is measured."""
    if util.find_spec("matplotlib") is None:
        raise StartError(
            "--sweep draws with matplotlib, which is not installed; install it with: pip install 'specproxy[plots]'"
        )


def draw(sweep: Sweep, file: Path) -> None:
    """Speed-up over plain, and tokens per target step, against the levels drafted; a line a drafter and width.

    Raises StartError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    speed, length = figure.subplots(1, 2)
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(curve.drafter for curve in sweep.curves))}
    for curve in sweep.curves:
        style = {"color": colours[curve.drafter], "linestyle": TREE_STYLES.get(curve.width, "-"), "marker": "."}
        fast = [(point.levels, point.ratio) for point in curve.points if point.ratio is not None]
        speed.plot([k for k, _ in fast], [ratio.mean for _, ratio in fast], label=curve.name, **style)
        low, high = [ratio.low for _, ratio in fast], [ratio.high for _, ratio in fast]
        if curve.width == 1 and all(map(math.isfinite, [*low, *high])):  # one prompt has no interval
            speed.fill_between([k for k, _ in fast], low, high, color=style["color"], alpha=0.1, linewidth=0)
        long = [(point.levels, point.length) for point in curve.points if point.length is not None]
        length.plot([k for k, _ in long], [tokens for _, tokens in long], label=curve.name, **style)
    speed.axhline(1.0, color="grey", linewidth=0.8)
    for axes, what in ((speed, "speed-up over plain decoding"), (length, "tokens per target step")):
        axes.set_xlabel("K: levels drafted")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    try:
        figure.savefig(file, dpi=DOTS_PER_INCH)
    except OSError as error:
        raise StartError(f"{file}: cannot be written: {error.strerror or error}") from None

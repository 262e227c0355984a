"""What the forms of ``specproxy bench`` share: arguments read, configuration found, other libraries set up."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specproxy.bench.arms import Arm
from specproxy.bench.field import drop_missing, field_config
from specproxy.bench.machine import usable_cores
from specproxy.bench.openvino_peer import Setup
from specproxy.bench.peers import Peer, Peers, Stock, peer_arms
from specproxy.config.flags import config_file, flag_settings
from specproxy.config.load import load_start_config
from specproxy.config.schema import DrafterConfig, StartConfig
from specproxy.models.grown.shapes import DRAFTS


def start_config(args: argparse.Namespace) -> StartConfig:
    """The start configuration; where the field's drafters are wanted and none are given, the bundled one with them.

    Raises ConfigError.
    """
    file, settings = config_file(args, os.environ), flag_settings(args)
    if args.scale:
        settings["model.grow"] = args.scale
    config = _start_config(args, file, settings)
    for drafter in config.drafters.values() if args.scale else ():
        if drafter.type == "draft_model":
            drafter.options.setdefault("grow", DRAFTS[args.scale])
    return config


def scaled(config: StartConfig | None) -> list[str]:
    """What numbers of a grown target are, for people."""
    if config is None or not config.model.grow:
        return []
    what = f"cost-scaled: {config.model.path} in the shape of {config.model.grow}"
    return [f"{what}; every byte of that shape's weights is read, text and acceptance are the small model's"]


def _start_config(args: argparse.Namespace, file: Path | None, settings: dict[str, object]) -> StartConfig:
    bundled = args.all_drafters or args.sweep or args.coupling
    if not bundled or file is not None or "drafters" in settings:
        return load_start_config(file, os.environ, settings)
    config = load_start_config(field_config(), os.environ, settings)
    for name in drop_missing(config):
        print(f"{name}: its weights are not bundled here; left out", file=sys.stderr)
    return config


def assistant(config: StartConfig) -> DrafterConfig | None:
    """The first draft model that is declared: what other libraries draft with."""
    return next((drafter for drafter in config.drafters.values() if drafter.type == "draft_model"), None)


def hf_arms(config: StartConfig) -> list[Arm]:
    """What transformers' generate is measured as; it compiles where the target is on a GPU."""
    from specproxy.bench.timing import find_device

    return peer_arms(
        assistant=assistant(config) is not None, compiled=find_device(config.model.device).startswith("cuda")
    )


def hf_peers(config: StartConfig, console: Console) -> dict[str, Peer]:
    """transformers' own models by arm: the target, and the assistant, both grown where ours are."""
    from specproxy.bench.timing import find_device
    from specproxy.models.loading import find_model

    console.print("loading the models in transformers")
    model, helper = config.model, assistant(config)
    peers = Peers.load(
        Stock(find_model(model.path, "target"), model.grow),
        None if helper is None else Stock(find_model(helper.path, "draft"), str(helper.options.get("grow") or "")),
        dtype=model.dtype,
        device=find_device(model.device),
        threads=threads_of(config),
    )
    return {arm.name: peers for arm in hf_arms(config)}


def openvino_setup(args: argparse.Namespace, config: StartConfig) -> Setup:
    """Where OpenVINO GenAI and its models are."""
    from specproxy.models.loading import find_model
    from specproxy.models.machine import cache_folder

    helper = assistant(config)
    python = args.openvino_python or sys.executable
    return Setup(
        # Absolute, but not resolved: an environment's Python is a link to one that lacks its packages.
        python=str(Path(shutil.which(python) or python).absolute()),
        target=find_model(config.model.path, "target").absolute(),
        draft=None if helper is None else find_model(helper.path, "draft").absolute(),
        cache=(args.openvino_models or cache_folder() / "openvino").absolute(),
        threads=threads_of(config),
    )


def threads_of(config: StartConfig) -> int:
    """As configured; else a thread for every core."""
    return usable_cores() if config.model.threads == "auto" else config.model.threads


def progress_bar(console: Console) -> Progress:
    """What is being done, and how much is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def numbers(text: str) -> list[int]:
    """A comma-separated list of numbers that are 1 or more."""
    return [count(part) for part in names(text)]


def names(text: str) -> list[str]:
    """A comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def count(text: str) -> int:
    """An argument that is 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def plot_file(text: str) -> Path:
    """Where a picture goes: a .png file in a folder that exists."""
    file = Path(text)
    if file.suffix != ".png" or not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a .png file in a folder that exists, got {text}")
    return file

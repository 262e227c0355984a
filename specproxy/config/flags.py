"""The command line's settings: the flags that people type, and ``--set`` for all others."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from specproxy.config.env import CONFIG_FILE
from specproxy.config.load import DRAFTER_FORM
from specproxy.errors import ConfigError

_FLAGS = (
    ("--model", "model.path", "PATH_OR_HF_ID", "the target; default: the bundled house model"),
    ("--model-name", "model.name", "NAME", "what clients call it; default: the last part of its path"),
    ("--device", "model.device", "DEVICE", "cpu, cuda, cuda:1, …; default: auto"),
    ("--dtype", "model.dtype", "DTYPE", "auto, bfloat16, float16 or float32"),
    ("--tensor-parallel", "model.tensor_parallel", "N", "GPUs of this host that share the target; default: 1"),
    ("--policies", "policies", "DIR", "directory of policy files"),
    ("--host", "server.host", "ADDRESS", "where to listen; other than loopback needs keys"),
    ("--port", "server.port", "PORT", "port to listen on"),
    ("--admin-port", "admin.port", "PORT", "the operators' port, where $SPECPROXY_ADMIN_KEY is set; default: 8001"),
    ("--admin-socket", "admin.socket", "PATH", "the operators' Unix socket, in place of their port"),
    ("--keys-file", "keys.file", "FILE", "API keys, one id: sha256 per line"),
    (
        "--capture",
        "capture.dir",
        "DIR",
        "keep answers of routes with capture: on there, for training; default: none kept",
    ),
    ("--log-level", "log.level", "LEVEL", "debug, info, warning or error"),
    ("--log-format", "log.format", "FORMAT", "console or json"),
)


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag that sets something of the start configuration, and ``--config``."""
    group = parser.add_argument_group("start configuration", "flags win over SPECPROXY_* variables and the file")
    group.add_argument("--config", metavar="FILE", type=Path, help=f"specproxy.yaml; default: ${CONFIG_FILE}")
    for flag, key, metavar, text in _FLAGS:
        group.add_argument(flag, dest=f"set:{key}", metavar=metavar, help=text)
    group.add_argument("--drafter", dest="set:drafters", metavar="NAME=TYPE:PATH", action="append", help=DRAFTER_FORM)
    group.add_argument("--set", dest="set_any", metavar="KEY=VALUE", action="append", default=[], help="any other key")


def config_file(arguments: argparse.Namespace, env: Mapping[str, str]) -> Path | None:
    """The configuration file that the flags, or else the environment, name."""
    named: Path | None = arguments.config
    if named is None and env.get(CONFIG_FILE):
        named = Path(env[CONFIG_FILE])
    return named


def flag_settings(arguments: argparse.Namespace) -> dict[str, object]:
    """The flags that were given, as ``load_start_config`` takes them. Raises ConfigError for a ``--set`` without =."""
    settings = {
        name.removeprefix("set:"): value
        for name, value in vars(arguments).items()
        if name.startswith("set:") and value is not None
    }
    for text in arguments.set_any:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set: expected KEY=VALUE such as server.max_queue=64, got {text}")
        settings[key.strip()] = value
    return settings

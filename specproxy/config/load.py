"""Load the start configuration: ``specproxy.yaml``, then ``SPECPROXY_*`` environment, then flags; the later wins.

An environment variable is the key's path in capitals, joined by two underscores (``SPECPROXY_SERVER__PORT``); what is
set most often has a short form (``SPECPROXY_PORT``). A flag's key is the dotted path (``server.port``). Every message
names the source, the value and what was expected.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from specproxy.config.env import environment_settings
from specproxy.config.schema import RESERVED_NAMES, DrafterConfig, StartConfig
from specproxy.config.validate import check, misfits, show, suggest
from specproxy.config.yaml_reader import Problem, parse_scalar, read_yaml
from specproxy.errors import ConfigError

HOUSE = "house"
"""The bundled model: as ``model.path`` the target, as a drafter's path its draft model."""

DRAFTER_FORM = "NAME=TYPE or NAME=TYPE:PATH, for example draft=draft_model:/models/draft"
_BUILTIN_DRAFTERS = ("grammar", "ngram", "prediction", "suffix")
_NEED_PATH = frozenset({"draft_model", "eagle3", "medusa"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


def load_start_config(
    file: Path | None = None, env: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> StartConfig:
    """The start configuration from all three sources, with its defaults filled in.

    ``flags`` maps dotted keys to values or to the text given on the command line; ``None`` means not given;
    ``drafters`` may be a list of ``NAME=TYPE:PATH``. Raises ConfigError with one line per fault.
    """
    problems: list[str] = []
    settings: dict[str, Any] = {}
    if file is not None:
        settings = _from_file(file, problems)
    for source, path, text in environment_settings(env or {}, _secret_names(settings), problems):
        _put(settings, source, path, text, problems)
    for key, value in (flags or {}).items():
        if value is not None:
            _put(settings, f"flag {key}", tuple(key.split(".")), value, problems)
    _check_names(settings, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    for drafter in settings.get("drafters", {}).values():
        extra = {key: drafter.pop(key) for key in list(drafter) if key not in DrafterConfig.__struct_fields__}
        drafter["options"] = {**drafter.get("options", {}), **extra}
    return _with_defaults(msgspec.convert(settings, StartConfig))


def _secret_names(settings: Mapping[str, Any]) -> set[str]:
    """Environment variables that hold keys, as the file names them: not settings, whatever they are called."""
    tables = [settings.get("keys"), settings.get("admin"), *_mapping(settings.get("upstreams")).values()]
    names = [_mapping(table).get(key) for table in tables for key in ("env", "key_env")]
    return {name for name in names if isinstance(name, str)}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def parse_drafter(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME=TYPE:PATH`` as name and mapping. Raises ValueError where it is something else."""
    name, equals, rest = text.partition("=")
    kind, _, path = rest.partition(":")
    if not equals or not name.strip() or not kind.strip():
        raise ValueError(f"expected {DRAFTER_FORM}, got {show(text)}")
    return name.strip(), {"type": kind.strip(), "path": path.strip()} if path else {"type": kind.strip()}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(config: StartConfig, *, has_keys: bool, has_admin_key: bool = True) -> None:
    """Refuse a listener that others can reach while anybody may use it. Raises ConfigError."""
    if not has_keys and not is_loopback(config.server.host):
        raise ConfigError(
            f'server.host is "{config.server.host}", which others can reach, but no API keys are set; '
            f"set keys.file or {config.keys.env}, or bind to 127.0.0.1"
        )
    if not has_admin_key and not is_loopback(config.admin.host):
        raise ConfigError(
            f'admin.host is "{config.admin.host}", which others can reach, but {config.admin.key_env} is not set; '
            "set it, or bind to 127.0.0.1"
        )


def _from_file(file: Path, problems: list[str]) -> dict[str, Any]:
    found: list[Problem] = []
    document = read_yaml(file, found)
    if document is not None and document.value is not None:
        check(document, StartConfig, found)
    problems += [str(problem) for problem in sorted(found)]
    if document is None or not isinstance(document.value, dict):
        return {}
    return document.value


def _put(settings: dict[str, Any], source: str, path: tuple[str, ...], value: object, problems: list[str]) -> None:
    """Set one key of ``settings`` from outside the file, if it exists and the value fits."""
    if path == ("drafters",):
        _put_drafters(settings, source, value, problems)
        return
    kind = _kind_at(inspect.type_info(StartConfig), path)
    if kind is None:
        problems.append(f"{source}: no such setting{suggest('.'.join(path), setting_names())}")
        return
    fitted = [item for item in _readings(value) if not misfits(item, kind)]
    if not fitted:
        problems.append(f"{source}: {misfits(value, kind)[0].message}")
        return
    inner = settings
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = fitted[0]


def _put_drafters(settings: dict[str, Any], source: str, value: object, problems: list[str]) -> None:
    given = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    for text in given:
        try:
            name, mapping = parse_drafter(str(text))
        except ValueError as error:
            problems.append(f"{source}: {error}")
            continue
        settings.setdefault("drafters", {})[name] = mapping


def _readings(value: object) -> list[object]:
    """What text may mean: a YAML scalar, itself, or a comma-separated list."""
    if not isinstance(value, str):
        return [value]
    return [parse_scalar(value), value, [part.strip() for part in value.split(",")]]


def _kind_at(kind: inspect.Type, path: tuple[str, ...]) -> inspect.Type | None:
    """The type of the setting at ``path``; ``None`` where there is none, or where it has settings inside."""
    for key in path:
        if isinstance(kind, inspect.StructType):
            fields = {item.encode_name: item.type for item in kind.fields}
            if key not in fields:
                return None
            kind = fields[key]
        elif isinstance(kind, inspect.DictType):
            kind = kind.value_type
        else:
            return None
    return None if isinstance(kind, inspect.StructType | inspect.DictType) else kind


def setting_names() -> list[str]:
    """Dotted names of every setting outside the named tables (drafters, upstreams)."""
    return _names(inspect.type_info(StartConfig), "")


def _names(kind: inspect.Type, prefix: str) -> list[str]:
    if not isinstance(kind, inspect.StructType):
        return [prefix]
    names = []
    for item in kind.fields:
        names += _names(item.type, f"{prefix}.{item.encode_name}" if prefix else item.encode_name)
    return names


def _check_names(settings: Mapping[str, Any], problems: list[str]) -> None:
    drafters = _mapping(settings.get("drafters"))
    upstreams = _mapping(settings.get("upstreams"))
    for table, names in (("drafters", drafters), ("upstreams", upstreams)):
        for name in names:
            if name in RESERVED_NAMES:
                problems.append(f'{table}.{name}: "{name}" is a word of the policy language; choose another name')
            elif not _NAME.match(name):
                problems.append(f"{table}: expected a name of letters, digits, _ . and -, got {show(name)}")
    for name, drafter in ((name, _mapping(value)) for name, value in drafters.items()):
        if "type" not in drafter and not problems:
            problems.append(f"drafters.{name}: type is missing; expected the drafter's type, such as draft_model")
        elif drafter.get("type") in _NEED_PATH and not drafter.get("path"):
            problems.append(f"drafters.{name}: type {drafter['type']} needs a path; expected {DRAFTER_FORM}")
        for key, value in drafter.items():
            if key not in DrafterConfig.__struct_fields__ and isinstance(value, dict | list):
                problems.append(f"drafters.{name}.{key}: expected a single value, got {show(value)}")
    for name, upstream in upstreams.items():
        url = _mapping(upstream).get("url")
        if isinstance(url, str) and not re.match(r"https?://[^/]", url):
            problems.append(f"upstreams.{name}.url: expected http://… or https://…, got {show(url)}")


def _with_defaults(config: StartConfig) -> StartConfig:
    """Fill in what follows from the rest: the model's name and the drafters that need nothing."""
    if not config.drafters and config.model.path == HOUSE:
        config.drafters["draft_model"] = DrafterConfig(type="draft_model", path=HOUSE)
    for name in _BUILTIN_DRAFTERS:
        config.drafters.setdefault(name, DrafterConfig(type=name))
    config.model.name = config.model.name or Path(config.model.path).name
    return config

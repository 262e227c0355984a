"""Which environment variables are settings, and of what."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from specproxy.config.validate import suggest

PREFIX = "SPECPROXY_"

SHORT_FORMS: Mapping[str, tuple[str, ...]] = {
    "SPECPROXY_MODEL": ("model", "path"),
    "SPECPROXY_MODEL_NAME": ("model", "name"),
    "SPECPROXY_DEVICE": ("model", "device"),
    "SPECPROXY_DTYPE": ("model", "dtype"),
    "SPECPROXY_HOST": ("server", "host"),
    "SPECPROXY_PORT": ("server", "port"),
    "SPECPROXY_KEYS_FILE": ("keys", "file"),
    "SPECPROXY_STATE": ("state", "path"),
    "SPECPROXY_CAPTURE": ("capture", "dir"),
    "SPECPROXY_LOG_LEVEL": ("log", "level"),
    "SPECPROXY_LOG_FORMAT": ("log", "format"),
    "SPECPROXY_POLICIES": ("policies",),
    "SPECPROXY_DRAFTERS": ("drafters",),
}
"""Short names of the settings that are set most often. ``SPECPROXY_DRAFTERS`` is a comma-separated list."""

CONFIG_FILE = "SPECPROXY_CONFIG"
"""Path of the configuration file, where no flag names one."""

_NO_SETTINGS = frozenset({CONFIG_FILE, "SPECPROXY_API_KEYS", "SPECPROXY_ADMIN_KEY"})
_KUBERNETES = re.compile(r"SPECPROXY_(SERVICE_(HOST|PORT)\w*|PORT_\d+_\w+)\Z")
"""What Kubernetes puts into every container when a Service is called specproxy."""


def environment_settings(
    env: Mapping[str, str], secrets: Collection[str], problems: list[str]
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Every setting of ``env`` as (variable, path, text), short forms first so that the full form wins.

    Variables of ours that are no settings are left out: ``secrets``, the default names of keys, Kubernetes' own.
    Unknown ones become problems.
    """
    for name in sorted(env, key=lambda item: ("__" in item, item)):
        text = env[name]
        if not name.startswith(PREFIX) or name in _NO_SETTINGS or name in secrets or _KUBERNETES.match(name):
            continue
        if name == "SPECPROXY_PORT" and re.match(r"(tcp|udp)://", text):
            continue
        if name in SHORT_FORMS:
            yield name, SHORT_FORMS[name], text
        elif "__" in name:
            yield name, tuple(name.removeprefix(PREFIX).lower().split("__")), text
        else:
            known = [*SHORT_FORMS, *_NO_SETTINGS]
            hint = suggest(name, known) or "; a nested setting is written like SPECPROXY_SERVER__PORT"
            problems.append(f"{name}: no such setting{hint}")

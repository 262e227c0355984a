"""The admin listener's socket, claimed before anything is loaded. Imports next to nothing."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from specproxy.config.schema import AdminConfig
from specproxy.errors import ConfigError

BACKLOG = 64
"""Connections that may wait to be accepted: operators are few."""


def claim_admin(config: AdminConfig, env: Mapping[str, str]) -> socket.socket | None:
    """A listening socket; ``None`` where there is neither a key nor a path. A Unix socket has mode 0600, so that only
    this user can open it. Raises ConfigError where the port or the path cannot be had."""
    if config.socket:
        return _claim_path(Path(config.socket))
    if not env.get(config.key_env, "").strip(" ,"):
        return None
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"admin: cannot listen on {config.host}, port {config.port}: {error.strerror or error}; "
            "choose another with --admin-port, or stop what uses it"
        ) from None


def release(listener: socket.socket, config: AdminConfig) -> None:
    """Close a listener that was claimed, and remove the path of a Unix socket."""
    listener.close()
    if config.socket:
        Path(config.socket).unlink(missing_ok=True)


def url_of(listener: socket.socket) -> str:
    """What ``--admin`` of the command line takes: ``http://host:port``, or ``unix:/path``."""
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{address}"
    host, port = address[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _claim_path(path: Path) -> socket.socket:
    path = path.absolute()
    try:
        _remove_abandoned(path)
        listener = socket.socket(socket.AF_UNIX)
        try:
            # Between bind and chmod nobody else may get in either.
            mask = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            path.chmod(0o600)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"admin.socket: cannot listen on {path}: {error.strerror or error}; choose another path in a folder that "
            "exists and is this user's"
        ) from None
    return listener


def _remove_abandoned(path: Path) -> None:
    """Remove the socket that a process which was killed has left. Raises ConfigError where it is anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"admin.socket: {path} is there and is no socket; choose another path, or move it away")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"admin.socket: another process listens on {path}; choose another path, or stop what uses it")

"""All upstreams of a start configuration: made, watched, and closed together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from msgspec import Struct

from specproxy.config.schema import UpstreamConfig
from specproxy.errors import ConfigError
from specproxy.upstream.breaker import BreakerState
from specproxy.upstream.client import Upstream
from specproxy.upstream.health import Watcher
from specproxy.upstream.observer import Observer


class UpstreamStatus(Struct, frozen=True):
    """An upstream as operators see it. ``state``: up, or why it would get no request now; ``problem``: its last
    failure, ``None`` where there was none."""

    kind: str
    url: str
    state: str
    breaker: BreakerState
    in_flight: int
    max_connections: int
    problem: str | None


class Upstreams(Mapping[str, Upstream]):
    """Upstreams by name. Raises ConfigError for one whose address is none, or whose key is not there."""

    def __init__(self, configs: Mapping[str, UpstreamConfig], env: Mapping[str, str], observer: Observer) -> None:
        self._all = {
            name: Upstream(name, config, _key_of(name, config, env), observer) for name, config in configs.items()
        }
        self._tasks: list[asyncio.Task[None]] = []

    def __getitem__(self, name: str) -> Upstream:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def watch(self) -> None:
        """Begin to ask them how they are."""
        self._tasks = [asyncio.create_task(Watcher(one).run()) for one in self._all.values()]

    async def close(self) -> None:
        """Stop asking, and drop all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for upstream in self._all.values():
            await upstream.close()

    def status(self) -> dict[str, UpstreamStatus]:
        """How each of them is."""
        return {name: _status(upstream) for name, upstream in self._all.items()}


def _status(upstream: Upstream) -> UpstreamStatus:
    refusal = upstream.refusal()
    return UpstreamStatus(
        kind=upstream.config.kind,
        url=upstream.address.api,
        state="up" if refusal is None else refusal.kind,
        breaker=upstream.breaker.state,
        in_flight=upstream.in_flight,
        max_connections=upstream.config.max_connections,
        problem=upstream.problem or None,
    )


def _key_of(name: str, config: UpstreamConfig, env: Mapping[str, str]) -> str:
    key = env.get(config.key_env, "").strip() if config.key_env else ""
    if config.key_env and not key:
        raise ConfigError(
            f"upstreams.{name}.key_env: the environment has no {config.key_env}; set it to the key of that server, or "
            "leave key_env out where it needs none"
        )
    if any(not " " < character < "\x7f" for character in key):
        raise ConfigError(
            f"upstreams.{name}.key_env: the key in {config.key_env} has characters that no header can have"
        )
    return key

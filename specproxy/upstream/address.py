"""Where an upstream is: the base of its API, and the root of its server, below which its health is asked."""

from __future__ import annotations

from dataclasses import dataclass

from yarl import URL

from specproxy.config.schema import UpstreamConfig
from specproxy.errors import ConfigError

_API = "/v1"
_HEALTH = {"vllm": "/health", "sglang": "/health", "tgi": "/health", "llama.cpp": "/health", "openai": ""}
"""Paths that answer 200 where the server can work; OpenAI has none that costs nothing."""


@dataclass(frozen=True)
class Address:
    """``api``: what stands before paths such as /chat/completions; ``root``: what stands before ``health``, which is
    empty where nothing is asked. Both without a slash at the end."""

    api: str
    root: str
    health: str

    def health_url(self) -> URL:
        """What to ask."""
        return URL(self.root + self.health, encoded=True)

    def metrics_url(self) -> URL:
        """Where vLLM's counters are."""
        return URL(f"{self.root}/metrics", encoded=True)

    def url(self, path: str) -> URL:
        """``path`` below the API, as raw as a client sent it."""
        return URL(self.api + path, encoded=True)


def address_of(name: str, config: UpstreamConfig) -> Address:
    """The address of an upstream. A bare host gets /v1. Raises ConfigError for what does not belong into a URL."""
    where = f"upstreams.{name}.url"
    try:
        url = URL(config.url)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; expected http://host:port/v1") from None
    if url.user or url.password:
        raise ConfigError(f"{where}: expected no user or password in it; name a variable with the key in key_env")
    if url.raw_query_string or url.raw_fragment or not url.host:
        raise ConfigError(f"{where}: expected http://host:port/v1, without ? and #")
    api = str(url).rstrip("/")
    if url.raw_path in ("", "/"):
        api += _API
    path = config.health.path
    health = _HEALTH[config.kind] if path == "auto" else path
    if health and not health.startswith("/"):
        raise ConfigError(f'upstreams.{name}.health.path: expected a path such as /health, got "{health}"')
    return Address(api, api.removesuffix(_API), health)

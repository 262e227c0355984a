"""A specproxy whose routes lead to upstreams, good and bad ones, and to the shared server's engine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.upstream import scripted
from tests.upstream.scripted import ScriptedServer

KEY = "sk-upstream-secret"
CLIENT_KEY = "sk-client-secret"
PATIENT = {"connect": 5, "first_byte": 20, "whole": 20, "idle": 20}
SHORT = {"connect": 5, "first_byte": 0.4, "whole": 0.4, "idle": 0.4}
NO_BREAKER = {"failures": 1000}
SCRIPTS: dict[str, Any] = {
    "good": scripted.good,
    "dies": scripted.dies,
    "ends": scripted.ends,
    "hangs": scripted.hangs,
    "stalls": scripted.stalls,
    "headers": scripted.headers_only,
    "redirects": scripted.redirects,
    "broken": scripted.fails(500, b'{"detail":"boom"}'),
    "busy": scripted.fails(429, b'{"error":{"message":"slow down","type":"t","param":null,"code":"rate"}}',
                           **{"retry-after": "7"}),
    "loading": scripted.fails(503, b"loading", "text/plain", **{"retry-after": "3"}),
    "detail": scripted.fails(422, b'{"detail":"no such field"}'),
    "refuses": scripted.fails(400, b'{"error": {"message":"bad tool",  "type":"x","param":"tools","code":null}}'),
    "short": scripted.fails(400, b'{"object":"error","message":"maximum context length is 5 tokens","code":400}'),
    "stranger": scripted.fails(401, b'{"error":{"message":"who are you","type":"t","param":null,"code":null}}'),
    "llama": scripted.says(b'{"choices":[],"timings":{"draft_n":20,"draft_n_accepted":12}}'),
    "sglang": scripted.says(b'{"choices":[{"index":0,"meta_info":{"spec_verify_ct":4,"spec_accept_length":2.5}}]}'),
    "trips": scripted.fails(500, b"no"),
    "sick": scripted.good,
    "narrow": scripted.stalls,
    "left": scripted.stalls,
    "large": scripted.says(b'{"x":"' + b"y" * 2**20 + b'"}'),
    "limited": scripted.stalls,
}  # fmt: skip


def upstream(url: str, **more: Any) -> dict[str, Any]:
    """An upstream of the start configuration."""
    return {"url": url, "timeouts": PATIENT, "breaker": NO_BREAKER, "retries": 0} | more


@pytest.fixture(scope="session")
def scripts() -> Iterator[ScriptedServer]:
    """The server with all scripts."""
    with scripted.serving(
        ScriptedServer({**SCRIPTS, "drops": scripted.DropsFirst(), "crowd": scripted.Crowd(120)})
    ) as server:
        yield server


@pytest.fixture(scope="session")
def deaf() -> Iterator[str]:
    """An address where connections are neither taken nor refused: its queue of them is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@pytest.fixture(scope="session")
def proxy(
    server: Any, scripts: ScriptedServer, deaf: str, start_server: Callable[..., Any], tmp_path_factory: Any
) -> Any:
    """The specproxy with upstreams. The header ``x-to`` says the backends, in order; ``x-long`` asks prompt_tokens."""
    folder: Path = tmp_path_factory.mktemp("upstream")
    upstreams = {name: upstream(scripts.url(name)) for name in scripts.scripts}
    upstreams["good"] |= {"key_env": "TEST_UPSTREAM_KEY", "models": {"ours": "theirs/model-7b"}}
    upstreams["drops"]["retries"] = 1
    upstreams["hangs"]["timeouts"] = upstreams["stalls"]["timeouts"] = SHORT
    upstreams["trips"]["breaker"] = {"failures": 3, "open_s": 2}
    upstreams["narrow"]["max_connections"] = 1
    upstreams["sick"] |= {"health": {"path": "/health", "every_s": 0.1}}
    upstreams["llama"]["kind"], upstreams["sglang"]["kind"] = "llama.cpp", "sglang"
    for name in ("llama", "sglang"):
        upstreams[name]["health"] = {"path": ""}
    upstreams["gone"] = upstream("http://127.0.0.1:9/v1")
    upstreams["deaf"] = upstream(deaf, timeouts={"connect": 0.3})
    upstreams["house"] = {"url": server.base_url, "kind": "vllm", "health": {"every_s": 0.2}}
    chains = [[name] for name in upstreams]
    chains += [[name, "good"] for name in upstreams if name != "good"]
    chains += [["engine", "good"], ["gone", "engine"], ["short", "engine"], ["engine"], ["gone", "broken"]]
    routes: list[dict[str, Any]] = [
        {"name": "-".join(chain).replace(".", ""), "match": {"header": {"x-to": ",".join(chain)}}, "backend": chain}
        for chain in chains
    ]
    routes.insert(0, {"name": "long", "match": {"header": {"x-long": "1"}, "prompt_tokens": {"gt": 60}},
                      "backend": "good"})  # fmt: skip
    next(route for route in routes if route["name"] == "limited")["limits"] = {"timeout_s": 0.5}
    routes.append({"name": "default"})
    (folder / "policies").mkdir()
    policy = {"version": 1, "defaults": {"limits": {"timeout_s": 20}}, "routes": routes}
    (folder / "policies" / "all.yaml").write_bytes(msgspec.json.encode(policy))
    config = {"upstreams": upstreams, "policies": str(folder / "policies"), "server": {"max_queue": 4, "drain_s": 1}}
    (folder / "specproxy.yaml").write_bytes(msgspec.json.encode(config))
    env = {"TEST_UPSTREAM_KEY": KEY, "SPECPROXY_API_KEYS": CLIENT_KEY}
    return start_server("--config", str(folder / "specproxy.yaml"), env=env)


@pytest.fixture
def http(proxy: Any) -> Iterator[httpx.Client]:
    """Plain HTTP to it, with a client's key."""
    with httpx.Client(base_url=proxy.url, timeout=30, headers={"Authorization": f"Bearer {CLIENT_KEY}"}) as one:
        yield one


@pytest.fixture
def ask(http: httpx.Client) -> Callable[..., httpx.Response]:
    """Post a chat to a route's backends; keywords go into the body."""

    def post(*backends: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "Say hi."}]
        body = {"model": "house", "messages": messages, "max_tokens": 8, "seed": 7} | fields
        to = {"x-to": ",".join(backends)} | (headers or {})
        return http.post("/v1/chat/completions", json=body, headers=to)

    return post


@pytest.fixture
def stream(ask: Callable[..., httpx.Response], http: httpx.Client) -> Callable[..., tuple[bytes, bool]]:
    """Stream a chat; the raw bytes, and whether the connection ended well."""

    def read(*backends: str) -> tuple[bytes, bool]:
        body = {"model": "house", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        raw = b""
        try:
            with http.stream("POST", "/v1/chat/completions", json=body, headers={"x-to": ",".join(backends)}) as answer:
                for piece in answer.iter_raw():
                    raw += piece
        except httpx.RemoteProtocolError:
            return raw, False
        return raw, True

    return read

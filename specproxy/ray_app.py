"""``serve run specproxy.ray_app:app``: specproxy on Ray Serve, with as many replicas as one likes (docs/ray.md)."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from specproxy.config.env import CONFIG_FILE
from specproxy.config.load import load_start_config
from specproxy.config.schema import StartConfig
from specproxy.errors import ConfigError
from specproxy.ray.affinity import PREFIX_CHARS
from specproxy.ray.ingress import Ingress, IngressOptions
from specproxy.ray.replica import Replica

SPARE_CALLS = 32
"""Calls beyond ``server.max_queue`` that a replica takes, so that it can say itself that its queue is full."""


class RayOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How the application is spread. ``cpus``, ``gpus``: what Ray sets aside for a replica; on a CPU, ``cpus`` is the
    threads of its engine too, where the configuration does not say. ``load_bound``: a replica's requests over the mean,
    above which requests go elsewhere than where their prefix is. ``ingresses``: processes that take requests in."""

    replicas: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    load_bound: float = 1.5
    prefix_chars: int = PREFIX_CHARS
    ingresses: int = 1
    health_period_s: float = 2.0


def app(args: dict[str, str]) -> Application:
    """The application. ``args``: fields of ``RayOptions``, ``config`` for the file (default: ``$SPECPROXY_CONFIG``),
    and any setting of it by its dotted name. Raises ConfigError."""
    own = {name: value for name, value in args.items() if name in RayOptions.__struct_fields__}
    try:
        options = msgspec.convert(own, RayOptions, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"arguments of specproxy.ray_app: {error}") from None
    settings = {name: value for name, value in args.items() if name not in own and name != "config"}
    file = args.get("config") or os.environ.get(CONFIG_FILE)
    config = load_start_config(Path(file) if file else None, os.environ, settings)
    return _bound(_everywhere(config, options), options)


def _everywhere(config: StartConfig, options: RayOptions) -> StartConfig:
    """The configuration as every replica takes it, in whatever folder it runs."""
    model = config.model
    if Path(model.path).is_dir():
        model = replace(model, path=str(Path(model.path).absolute()))
    if model.threads == "auto" and not options.gpus:
        model = replace(model, threads=max(1, int(options.cpus)))
    state = replace(config.state, path=str(Path(config.state.path).absolute()))
    return replace(config, model=model, state=state, policies=str(Path(config.policies).absolute()))


def _bound(config: StartConfig, options: RayOptions) -> Application:
    replicas = serve.deployment(
        Replica,
        name="replica",
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        max_ongoing_requests=config.server.max_queue + SPARE_CALLS,
        health_check_period_s=options.health_period_s,
        graceful_shutdown_timeout_s=config.server.drain_s,
        request_router_config=RequestRouterConfig(
            request_router_class="specproxy.ray.router.PrefixRouter",
            request_router_kwargs={"bound": options.load_bound},
        ),
    )
    ingress = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=options.ingresses,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=options.replicas * (config.server.max_queue + SPARE_CALLS),
    )
    within = IngressOptions(
        max_body=config.server.max_body_mb * 2**20,
        keepalive_s=config.server.keepalive_s,
        log=config.log,
        prefix_chars=options.prefix_chars,
    )
    return ingress.bind(replicas.bind(config), within)

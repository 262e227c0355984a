"""docker-compose.yml and the file for GPUs: valid, pinned, closed to the outside, and in step with what they mount."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from specproxy.config.load import load_start_config
from tests.deploy.conftest import DEPLOY, ROOT, needs, passed, read_yaml, run
from tests.deploy.dockerfile import read_stages

COMPOSE = ROOT / "docker-compose.yml"
GPU = DEPLOY / "gpu.yml"
SERVICES: dict[str, dict[str, Any]] = read_yaml(COMPOSE)["services"]
OURS = {name for name in os.environ if name.startswith(("SPECPROXY_", "VLLM_"))}


def merged(*flags: str, **env: str) -> str:
    """What ``docker-compose config`` prints, or why it refuses."""
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    done = run("docker-compose", *flags, "config", env=clean | env)
    return done.stdout if done.returncode == 0 else f"refused: {done.stderr}"


@needs("check-jsonschema")
def test_it_follows_the_specification() -> None:
    """Both files are valid by the JSON schema of the Compose specification."""
    assert "ok" in passed(run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE, GPU))


@needs("docker-compose")
def test_compose_resolves_it() -> None:
    """`docker-compose config` accepts it, and refuses to start without a key."""
    assert "specproxy:cpu" in merged("-f", str(COMPOSE), SPECPROXY_API_KEYS="secret")
    assert "SPECPROXY_API_KEYS" in merged("-f", str(COMPOSE)).partition("refused: ")[2]


@needs("docker-compose")
def test_the_second_file_puts_the_proxy_on_a_gpu() -> None:
    """Laid over the first one it changes target and device of the proxy, and keeps the rest."""
    both = merged("-f", str(COMPOSE), "-f", str(GPU), SPECPROXY_API_KEYS="secret")
    for words in ("target: cuda", "specproxy:cuda", "driver: nvidia", "no-new-privileges", "127.0.0.1:8000:8000"):
        assert words in both
    assert "specproxy:cpu" not in both


def test_images_are_pinned_or_built_here() -> None:
    """Each image is one exact version, and those that are built are targets of the Dockerfile."""
    stages = read_stages(ROOT / "Dockerfile")
    for service in [*SERVICES.values(), *read_yaml(GPU)["services"].values()]:
        name, _, tag = service["image"].partition(":")
        if "build" in service:
            assert (name, tag) == ("specproxy", service["build"]["target"])
            assert tag in stages
        else:
            assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), service["image"]


def test_nothing_is_open_to_the_network() -> None:
    """Ports are published on loopback alone; vLLM's not at all."""
    for name, service in SERVICES.items():
        ports = service.get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert bool(ports) == (name != "vllm")


@pytest.mark.parametrize("name", ["specproxy", "prometheus", "grafana"])
def test_containers_have_no_privileges(name: str) -> None:
    """No capability is left, and none can be had."""
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_what_is_mounted_is_there() -> None:
    """Paths of this repository exist and are mounted read-only; volumes are declared and all in use."""
    volumes = [volume for service in SERVICES.values() for volume in service["volumes"]]
    ours = [volume.split(":") for volume in volumes if volume.startswith("./")]
    assert all((ROOT / source).is_dir() and mode == "ro" for source, _, mode in ours)
    named = {volume.split(":")[0] for volume in volumes if not volume.startswith("./")}
    assert named == set(read_yaml(COMPOSE)["volumes"])


def test_the_environment_of_the_proxy_is_settings() -> None:
    """Every variable means something to the configuration; the upstream is the service of that name."""
    env = SERVICES["specproxy"]["environment"]
    assert ":?" in env["SPECPROXY_API_KEYS"]
    given = {name: re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value or "") for name, value in env.items()}
    exported = dict(re.findall(r"(SPECPROXY_UPSTREAMS__\w+)=(\S+)", COMPOSE.read_text("utf-8")))
    assert set(exported) == {name for name in env if "UPSTREAMS" in name}
    given |= exported
    config = load_start_config(env={name: value for name, value in given.items() if name.startswith("SPECPROXY_")})
    assert (config.model.path, config.admin.host) == ("house", "127.0.0.1")
    assert (config.upstreams["vllm"].url, config.upstreams["vllm"].kind) == ("http://vllm:8000/v1", "vllm")
    assert SERVICES["vllm"]["profiles"] == ["vllm"]


def test_prometheus_scrapes_the_services() -> None:
    """Each job of Prometheus' configuration asks a service of the file, at the port that it listens on."""
    jobs = {job["job_name"]: job for job in read_yaml(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]}
    assert jobs["specproxy"]["static_configs"] == [{"targets": ["specproxy:8000"]}]
    assert jobs["vllm"]["dns_sd_configs"] == [{"names": ["vllm"], "type": "A", "port": 8000}]
    assert set(jobs) <= set(SERVICES)


def test_a_stop_waits_for_the_drain() -> None:
    """The container gets longer to stop than the server gives to running answers."""
    grace = SERVICES["specproxy"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > load_start_config().server.drain_s

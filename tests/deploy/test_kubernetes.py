"""The sidecar example: valid by Kubernetes' schemas, and its policies, probes and variables are ours."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from specproxy.config.load import load_start_config
from specproxy.policy.catalogue import Catalogue
from specproxy.policy.policy import PolicySet
from specproxy.policy.watch import PolicyStore
from tests.deploy.conftest import DOCUMENTS, KUBERNETES, POD, ROOT, SIDECAR, needs, passed, run
from tests.deploy.dockerfile import chain, last, read_stages, settings

APP = POD["containers"][0]
IMAGE = chain(read_stages(ROOT / "Dockerfile"), "cpu")


def projected(folder: Path, texts: dict[str, str], version: str) -> None:
    """What the kubelet does with a ConfigMap: files in a dated folder, and links that change over at once."""
    (folder / f"..{version}").mkdir(parents=True)
    for name, text in texts.items():
        (folder / f"..{version}" / name).write_text(text)
        with contextlib.suppress(FileExistsError):
            (folder / name).symlink_to(Path("..data") / name)
    (folder / "..data_tmp").symlink_to(f"..{version}")
    (folder / "..data_tmp").rename(folder / "..data")


@pytest.fixture
def catalogue() -> Catalogue:
    """What a server without drafters of its own knows."""
    return Catalogue.from_config(load_start_config())


@needs("kubernetes-validate")
def test_it_follows_kubernetes_schemas() -> None:
    """Every document is valid, with no unknown field."""
    printed = passed(run("kubernetes-validate", "--strict", KUBERNETES))
    assert printed.count("passed") == len(DOCUMENTS) == 4


def test_the_pod_is_not_root() -> None:
    """User and group are the image's, the root is read-only, and what is written is mounted."""
    context = POD["securityContext"]
    assert context["runAsNonRoot"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == last(IMAGE, "USER").text
    assert context["fsGroup"] == context["runAsGroup"]
    assert SIDECAR["securityContext"]["readOnlyRootFilesystem"]
    mounts = {mount["mountPath"] for mount in SIDECAR["volumeMounts"]}
    assert mounts == {*last(IMAGE, "VOLUME").words, "/tmp", settings(IMAGE)["SPECPROXY_POLICIES"]}
    claims = [claim["metadata"]["name"] for claim in DOCUMENTS["StatefulSet"]["spec"]["volumeClaimTemplates"]]
    volumes = [volume["name"] for volume in POD["volumes"]]
    assert {mount["name"] for mount in SIDECAR["volumeMounts"]} == {*claims, *volumes}


def test_it_starts_before_the_application_and_ends_after_it() -> None:
    """A sidecar is an init container that restarts; the pod waits longer for it than a drain takes."""
    assert SIDECAR["restartPolicy"] == "Always"
    assert POD["terminationGracePeriodSeconds"] > load_start_config().server.drain_s


def test_probes_ask_what_fits() -> None:
    """Starting and ready by /ready, alive by /health: an engine that loads must not be killed for it."""
    paths = {name: SIDECAR[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    (port,) = SIDECAR["ports"]
    assert str(port["containerPort"]) == settings(IMAGE)["SPECPROXY_PORT"]


def test_keys_come_from_the_secret_alone() -> None:
    """Variables are settings or keys; keys are references, and the application gets the one for the API."""
    plain = {item["name"]: item["value"] for item in SIDECAR["env"] if "value" in item}
    assert load_start_config(env=plain).model.path == "house"
    referred = {
        item["name"]: item["valueFrom"]["secretKeyRef"]["key"]
        for container in (SIDECAR, APP)
        for item in container["env"]
        if "valueFrom" in item
    }
    assert referred == {"SPECPROXY_API_KEYS": "api", "SPECPROXY_ADMIN_KEY": "admin", "OPENAI_API_KEY": "api"}
    assert set(DOCUMENTS["Secret"]["stringData"]) == {"api", "admin"}


def test_the_policies_are_a_set(tmp_path: Path, catalogue: Catalogue) -> None:
    """The ConfigMap is a complete policy set without warnings, also when it is read through the kubelet's links."""
    projected(tmp_path / "policies", DOCUMENTS["ConfigMap"]["data"], "one")
    policies = PolicySet.load(tmp_path / "policies", catalogue)
    assert policies.warnings == ()
    assert [route.name for route in policies.routes] == ["structured", "default"]


async def test_an_edit_of_the_configmap_is_seen(
    tmp_path: Path, catalogue: Catalogue, eventually: Callable[..., None]
) -> None:
    """The kubelet swaps a link, no policy file itself changes, and the set is read again."""
    folder, texts = tmp_path / "policies", dict(DOCUMENTS["ConfigMap"]["data"])
    projected(folder, texts, "one")
    store = PolicyStore(folder, catalogue)
    before = store.current.hash
    watching = asyncio.create_task(store.watch())
    try:
        await asyncio.sleep(0.2)
        projected(folder, {name: text.replace("max: 12", "max: 6") for name, text in texts.items()}, "two")
        await asyncio.to_thread(eventually, lambda: store.current.hash != before, what="the edit")
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    assert store.failure is None

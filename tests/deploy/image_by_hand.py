"""The Dockerfile's steps without Docker: build a target, then run it as its image would run.

    sudo python3 tests/deploy/image_by_hand.py cpu [--build-arg NAME=VALUE]

Each stage is an overlay over this machine's own files, which stand for the base image (so this machine should be a
Debian with Python 3.11 or newer and its venv), in a mount namespace that goes away with this process. Every RUN, COPY,
ENV and WORKDIR is carried out as written. Then the entry point runs as the image's user, on a read-only root with
volumes and a /tmp of its own, is asked for its health by the image's own check, answers a request, and is drained.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.deploy.dockerfile import Instruction, assignments, chain, last, read_stages  # noqa: E402

INSIDE = "SPECPROXY_BY_HAND"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PORT = 18765
KEY = "by-hand"
READY_S = 300.0


class Builder:
    """Builds stages below ``folder``; ``arguments``: what --build-arg gave."""

    def __init__(self, folder: Path, arguments: dict[str, str]) -> None:
        self._folder = folder
        self._arguments = arguments
        self.stages = read_stages(ROOT / "Dockerfile")
        self._roots: dict[str, Path] = {}

    def build(self, target: str) -> tuple[Path, dict[str, str]]:
        """The root of a stage, and its environment."""
        root = self._roots.get(target) or self._overlay(target)
        self._roots[target] = root
        env, place = {"PATH": PATH}, "/"
        for instruction in chain(self.stages, target):
            print(f"{target}: {instruction.name} {instruction.text[:150]}", flush=True)
            expanded = Template(instruction.text).safe_substitute(env)
            if instruction.name in ("ARG", "ENV"):
                found = assignments(expanded)
                env |= found if instruction.name == "ENV" else {n: self._arguments.get(n, v) for n, v in found.items()}
            elif instruction.name == "WORKDIR":
                place = expanded
                (root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif instruction.name == "COPY":
                self._copy(root, place, expanded.split())
            elif instruction.name == "RUN":
                subprocess.run(["chroot", root, "sh", "-ec", f"cd {place}; {instruction.text}"], env=env, check=True)
        return root, env

    def _overlay(self, target: str) -> Path:
        root, upper, work = (self._folder / target / part for part in ("root", "upper", "work"))
        for folder in (root, upper, work):
            folder.mkdir(parents=True)
        mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", "overlay", root)
        for kernel in ("proc", "sys", "dev"):
            mount("--rbind", f"/{kernel}", root / kernel)
        # The base image calls it so; on Debian it has another name.
        if shutil.which("python", path=PATH) is None:
            (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        return root

    def _copy(self, root: Path, place: str, words: list[str]) -> None:
        source_root = ROOT
        if words[0].startswith("--from="):
            source_root = self.build(words.pop(0).removeprefix("--from="))[0]
        *sources, to = words
        into = root / (to if to.startswith("/") else f"{place}/{to}").lstrip("/")
        for source in sources:
            path = source_root / source.lstrip("/")
            if path.is_dir():
                shutil.copytree(
                    path, into, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy2(path, into / path.name)


def mount(*arguments: str | Path) -> None:
    """``mount`` with these arguments."""
    subprocess.run(["mount", *arguments], check=True)


def lock(root: Path, folder: Path, volumes: list[str]) -> None:
    """Volumes and /tmp over ``root`` as they are when it runs, the rest read-only."""
    for volume in volumes:
        path, kept = root / volume.lstrip("/"), folder / "volumes" / volume.lstrip("/")
        kept.mkdir(parents=True)
        os.chown(kept, path.stat().st_uid, path.stat().st_gid)
        mount("--bind", kept, path)
    mount("-o", "remount,ro", root)
    mount("-t", "tmpfs", "-o", "nosuid,nodev", "tmpfs", root / "tmp")


@contextlib.contextmanager
def running(root: Path, env: dict[str, str], instructions: list[Instruction]) -> Iterator[subprocess.Popen[bytes]]:
    """The entry point, as the image's user."""
    user, _, group = last(instructions, "USER").text.partition(":")
    command = [*last(instructions, "ENTRYPOINT").words, *last(instructions, "CMD").words]
    process = subprocess.Popen(as_user(root, user, group, command), env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def as_user(root: Path, user: str, group: str, command: list[str]) -> list[str]:
    """``command`` in the image, without privileges and with no way to get any."""
    drop = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
    return ["chroot", str(root), *drop, "--", *command]


def ask(path: str, body: object = None, key: str = "") -> tuple[int, bytes]:
    """Status and body of a request to the running image."""
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def try_out(root: Path, env: dict[str, str], instructions: list[Instruction]) -> None:
    """Health, readiness, keys, one answer, the user, a drain. Raises SystemExit naming what is wrong."""
    user, _, group = last(instructions, "USER").text.partition(":")
    check = json.loads(last(instructions, "HEALTHCHECK").text.partition("CMD ")[2])
    with running(root, env, instructions) as process:
        deadline = time.monotonic() + READY_S
        while subprocess.run(as_user(root, user, group, check), env=env, capture_output=True, check=False).returncode:
            demand(time.monotonic() < deadline and process.poll() is None, "the image's own check never passed")
            time.sleep(1)
        while ask("/ready")[0] != 200:
            demand(time.monotonic() < deadline and process.poll() is None, "it never became ready")
            time.sleep(1)
        body = {"model": "house", "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
        demand(ask("/v1/chat/completions", body)[0] == 401, "a request without a key must be refused")
        status, answer = ask("/v1/chat/completions", body, KEY)
        demand(status == 200, f"a request with the key got {status}: {answer.decode()}")
        owner = Path(f"/proc/{process.pid}").stat().st_uid
        demand(str(owner) == user, f"it runs as user {owner}")
        process.terminate()
        demand(process.wait(60) == 0, f"SIGTERM ended it with {process.returncode}")
    print(f"built and ran as user {user}; exactness {json.loads(answer)['specproxy']['exactness']}; drained with 0")


def demand(holds: bool, otherwise: str) -> None:
    """Raises SystemExit saying ``otherwise``."""
    if not holds:
        raise SystemExit(f"image_by_hand: {otherwise}")


def main() -> None:
    """Build and try one target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=["cpu", "cuda"])
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the layers may lie; not on an overlay")
    parser.add_argument("--build-only", action="store_true", help="the target with CUDA runs only beside a GPU")
    args = parser.parse_args()
    demand(os.geteuid() == 0, "mounts and other users need root")
    if INSIDE in os.environ:
        build_and_try(args, Path(os.environ[INSIDE]))
        return
    # Files are removed from outside: no mount of the inner process can be seen, and so none be emptied, from here.
    with tempfile.TemporaryDirectory(prefix="specproxy-image-", dir=args.folder) as folder:
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
        done = subprocess.run(command, env={**os.environ, INSIDE: folder}, check=False)
    sys.exit(done.returncode)


def build_and_try(args: argparse.Namespace, folder: Path) -> None:
    """What is done within a mount namespace of its own."""
    builder = Builder(folder, assignments(" ".join(args.build_arg)))
    root, env = builder.build(args.target)
    instructions = chain(builder.stages, args.target)
    lock(root, folder, last(instructions, "VOLUME").words)
    if not args.build_only:
        try_out(root, env | {"SPECPROXY_API_KEYS": KEY, "SPECPROXY_PORT": str(PORT)}, instructions)


if __name__ == "__main__":
    main()

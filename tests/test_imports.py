"""The rooms and who may import whom: the table of CONTRIBUTING.md, enforced."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "specproxy"

LEAVES = {"vocabulary", "errors", "alignment", "bundle"}
ALLOWED: dict[str, set[str]] = {
    "vocabulary": set(),
    "errors": {"vocabulary"},
    "alignment": set(),
    "bundle": {"vocabulary", "errors"},
    "backend": {"vocabulary"},
    "config": LEAVES,
    "wire": LEAVES,
    "text": LEAVES,
    "policy": LEAVES | {"config"},
    "gate": LEAVES | {"config", "policy"},
    "structured": LEAVES,
    "tools": LEAVES,
    "kernels": set(),
    "models": LEAVES | {"kernels"},
    "sampling": LEAVES | {"kernels", "structured"},
    "audit": LEAVES | {"kernels", "sampling", "structured"},
    "heads": LEAVES | {"kernels", "models"},
    "drafters": LEAVES | {"kernels", "models", "sampling", "heads"},
    "train": LEAVES | {"config", "text", "kernels", "models", "sampling", "heads", "drafters"},
    "engine": LEAVES | {"config", "wire", "kernels", "models", "sampling", "audit", "heads", "drafters", "structured"},
    "upstream": LEAVES | {"config"},
    "server": LEAVES | {"backend", "config", "wire", "text", "policy", "gate", "upstream", "structured", "tools"},
    "bench": LEAVES
    | {"backend", "config", "wire", "text", "policy", "gate", "kernels", "sampling", "models", "engine", "server"},
    "tune": LEAVES | {"policy", "gate", "bench"},
    "cli": LEAVES
    | {"backend", "config", "wire", "text", "policy", "gate", "models", "audit", "engine", "server", "bench", "tune"}
    | {"train"},
    "ray": LEAVES | {"config", "policy", "gate", "wire", "server"},
    "ray_app": LEAVES | {"config", "ray"},
    "__main__": {"cli"},
}
"""Room -> rooms that its code may import when it runs. Every room may import itself and ``specproxy``."""

LIGHT = [
    "vocabulary",
    "errors",
    "alignment",
    "bundle",
    "backend",
    "config",
    "wire",
    "text",
    "policy",
    "gate",
    "upstream",
    "server",
    "structured",
    "tools",
]
"""Rooms that must start fast and small."""

HEAVY = {"torch", "transformers", "triton", "safetensors"}
SCALE_OUT = {"ray", "starlette"}
"""Packages of the extra ``ray``: nothing else may need them."""

KERNEL_PACKAGES = {"torch", "triton", "numpy", "specproxy"}


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what, where; ``typing``: for the type checker only."""

    importer: str
    target: str
    line: int
    typing: bool

    @property
    def room(self) -> str:
        """The importing room."""
        return room_of(self.importer)

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def room_of(module: str) -> str:
    """``specproxy.engine.loop`` -> ``engine``; the package itself -> the empty string."""
    return ".".join(module.split(".")[1:2])


def module_of(file: Path) -> str:
    """The dotted name of a source file."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str) -> Iterator[Import]:
    """Every import of a module, also those inside functions."""
    tree = ast.parse(source)
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(module, target, node.lineno, id(node) in typing_only)


def package_imports() -> list[Import]:
    """Every import of the package; kernels are found through their link."""
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").glob("*.py")]
    return [found for file in sorted(set(files)) for found in imports_of(file.read_text("utf-8"), module_of(file))]


def faults(imports: list[Import]) -> list[str]:
    """What breaks the table."""
    return [str(item) for item in imports if breaks_the_table(item)]


def breaks_the_table(item: Import) -> bool:
    """Whether this import is one that its room may not have."""
    top, room = item.target.split(".")[0], room_of(item.target)
    if top == "specproxy":
        allowed = ALLOWED.get(item.room, set()) | {item.room}
        return item.room in ALLOWED and room in ALLOWED and room not in allowed and not item.typing
    if top == "kernels":
        return True
    if item.room == "kernels":
        return top not in KERNEL_PACKAGES and top not in sys.stdlib_module_names
    if top in SCALE_OUT:
        return not item.room.startswith("ray")
    return item.room in LIGHT and top in HEAVY


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    """Every import of the package."""
    return package_imports()


def test_every_import_is_in_the_table(imports: list[Import]) -> None:
    """No room imports a room that its row does not name, and light rooms import no heavy package."""
    assert faults(imports) == []


def test_every_room_has_a_row(imports: list[Import]) -> None:
    """A new room must say whom it may import before it can be merged."""
    assert {item.room for item in imports} - {""} <= set(ALLOWED)


def test_the_table_has_no_cycle() -> None:
    """Rooms can be put in an order in which each imports only earlier ones."""
    placed: set[str] = set()
    waiting = dict(ALLOWED)
    while waiting:
        free = [room for room, needs in waiting.items() if needs <= placed]
        assert free, f"cycle among {sorted(waiting)}"
        placed |= set(free)
        waiting = {room: needs for room, needs in waiting.items() if room not in placed}


def test_modules_form_no_cycle_at_import_time(imports: list[Import]) -> None:
    """No two modules need each other while they are being imported."""
    modules = {module_of(file) for file in PACKAGE.rglob("*.py")}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for item in imports:
        if item.typing or not item.target.startswith("specproxy"):
            continue
        target = item.target if item.target in modules else item.target.rpartition(".")[0]
        if target in modules and target != item.importer and not inside_function(item):
            graph[item.importer].add(target)
    while leaves := [module for module, needs in graph.items() if not needs]:
        for leaf in leaves:
            del graph[leaf]
        for needs in graph.values():
            needs.difference_update(leaves)
    assert graph == {}


def inside_function(item: Import) -> bool:
    """Whether the import runs later, when a function is called."""
    file = ROOT / (item.importer.replace(".", "/") + ".py")
    file = file if file.exists() else file.with_suffix("") / "__init__.py"
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return any(
        isinstance(node, functions) and node.lineno < item.line <= (node.end_lineno or 0)
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
    )


def test_drafters_never_name_the_scheduler_or_loop(imports: list[Import]) -> None:
    """A drafter sees rows and batches, never who schedules them, not even as a type."""
    hidden = ("specproxy.engine.scheduler", "specproxy.engine.loop", "specproxy.engine.drafting")
    assert [str(i) for i in imports if i.room == "drafters" and i.target.startswith(hidden)] == []


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("specproxy.policy.decide", "from specproxy.engine.loop import Engine", True),
        ("specproxy.server.app", "def late():\n    import torch", True),
        ("specproxy.drafters.ngram", "from specproxy.engine.scheduler import Scheduler", True),
        ("specproxy.kernels.walk", "from specproxy.vocabulary import Decision", True),
        ("specproxy.kernels.walk", "import regex", True),
        ("specproxy.models.loading", "import kernels.walk", True),
        ("specproxy.server.app", "def late():\n    import ray", True),
        ("specproxy.cli.serve", "from specproxy.ray.affinity import key_of", True),
        ("specproxy.ray.replica", "from ray import serve", False),
        ("specproxy.engine.loop", "from specproxy.drafters.base import Drafter", False),
        ("specproxy.server.app", "from specproxy.policy.policy import PolicySet", False),
        (
            "specproxy.drafters.base",
            "if TYPE_CHECKING:\n    from specproxy.sampling.sampler import Sampler",
            False,
        ),
    ],
)
def test_the_check_catches_what_it_should(module: str, source: str, *, caught: bool) -> None:
    """A planted import that breaks the table is reported, and one that keeps it is not."""
    assert bool(faults(list(imports_of(source, module)))) is caught


def test_the_server_process_loads_no_model_library() -> None:
    """Importing everything that the server runs leaves torch and transformers out of the process."""
    modules = [module_of(f) for room in LIGHT for f in [PACKAGE / f"{room}.py", *(PACKAGE / room).rglob("*.py")]]
    modules = [module for module in modules if (ROOT / module.replace(".", "/")).with_suffix(".py").exists()]
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += f"print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr

"""The layers of docs/design.md: a module imports lower layers, and only their public names."""

import ast
import importlib
from pathlib import Path

import pytest

import tiered_embed

ROOT = Path(tiered_embed.__file__).parent

# The layer of each package and top-level module. An import goes to a lower layer or stays inside.
LAYERS = {
    "_native": 0,
    "_rocksdb": 0,
    "errors": 1,
    "optim": 2,
    "spec": 3,
    "store": 4,
    "traces": 4,
    "tiers": 5,
    "kernels": 6,
    "residency": 6,
    "engine": 7,
    "modules": 8,
    "checkpoint": 9,
    "loop": 9,
    "simulate": 9,
    "__init__": 10,
    "examples": 11,
    "bench": 12,
    "cli": 13,
}
MODULES = sorted(ROOT.rglob("*.py"))


def top(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """Per import from this package, wherever in the file: (package, module below it, names)."""
    package = ("tiered_embed", *path.relative_to(ROOT).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            names = tuple(alias.name for alias in node.names)
            if module[:1] != ("tiered_embed",):
                continue
            if len(module) > 1:
                found.append((module[1], ".".join(module[2:]), names))
            else:
                for name in names:
                    known = name in LAYERS
                    found.append((name, "", ()) if known else ("__init__", "", (name,)))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "tiered_embed":
                    below = parts[1] if len(parts) > 1 else "__init__"
                    found.append((below, ".".join(parts[2:]), ()))
    return found


def test_every_module_has_a_layer() -> None:
    assert {top(p) for p in MODULES} <= set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    mine = top(path)
    wrong = {t for t, _, _ in imports(path) if t != mine and LAYERS[t] >= LAYERS[mine]}
    assert not wrong, f"{mine} (layer {LAYERS[mine]}) imports {sorted(wrong)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_are_used_by_their_public_names(path: Path) -> None:
    mine = top(path)
    for package, below, names in imports(path):
        if package == mine or package in ("_native", "_rocksdb", "errors", "__init__"):
            continue
        assert not below, f"{package}.{below} is imported past {package}/__init__.py"
        public = importlib.import_module(f"tiered_embed.{package}").__all__
        hidden = sorted(set(names) - set(public))
        assert not hidden, f"{package} does not export {hidden}"


def test_only_the_engine_and_the_store_know_threads() -> None:
    """The engine's lanes own the threads; others only lock."""
    users = {
        top(p)
        for p in MODULES
        if any(w in p.read_text() for w in ("import threading", "concurrent.futures"))
    }
    assert users <= {"engine", "store", "tiers", "kernels", "checkpoint"}
    words = ("ThreadPoolExecutor(", "threading.Thread(")
    owners = {p.relative_to(ROOT) for p in MODULES if any(w in p.read_text() for w in words)}
    assert owners == {Path("engine/lanes.py")}


def test_the_extension_does_not_link_libtorch() -> None:
    import subprocess

    from tiered_embed import _native

    linked = subprocess.run(
        ["readelf", "-d", _native.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert "torch" not in linked
    assert "libc10" not in linked

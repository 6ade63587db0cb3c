"""The import direction of DESIGN: a module imports only lower layers."""

import ast
from pathlib import Path

import pytest

import tiered_embed

ROOT = Path(tiered_embed.__file__).parent

# Rank of each top-level module or package; an import goes to a lower rank, or stays inside.
RANKS = {
    "_native": 0,
    "_rocksdb": 0,
    "errors": 1,
    "config": 2,
    "stats": 2,
    "depth": 2,
    "stages": 3,
    "optim": 3,
    "init": 3,
    "store": 3,
    "traces": 3,
    "weights": 4,
    "residency": 5,
    "tiers": 5,
    "kernels": 6,
    "execution": 6,
    "pipeline": 7,
    "modules": 8,
    "checkpoint": 9,
    "prefetch": 9,
    "training": 9,
    "candidates": 9,
    "swap": 10,
    "simulate": 10,
    "__init__": 11,
    "examples": 12,
    "bench_options": 12,
    "bench": 13,
    "bench_report": 14,
    "cli": 15,
}
MODULES = sorted(ROOT.rglob("*.py"))


def top(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path: Path) -> set[str]:
    """Top-level names of this package that the file imports, wherever in the file."""
    package = ("tiered_embed", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        targets = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            if module[:1] == ("tiered_embed",) and len(module) == 1:
                names = [a.name for a in node.names]
                targets = [n if n in RANKS else "__init__" for n in names]
            elif module[:1] == ("tiered_embed",):
                targets = [module[1]]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "tiered_embed":
                    targets.append(parts[1] if len(parts) > 1 else "__init__")
        found.update(targets)
    return found


def test_every_module_has_a_rank() -> None:
    assert {top(p) for p in MODULES} <= set(RANKS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    mine = top(path)
    wrong = {t for t in imported(path) - {mine} if RANKS[t] >= RANKS[mine]}
    assert not wrong, f"{mine} (rank {RANKS[mine]}) imports {sorted(wrong)}"


def test_only_the_pipeline_and_the_store_know_threads() -> None:
    """The pipeline's execution owns the threads; others only lock."""
    users = {
        top(p)
        for p in MODULES
        if any(w in p.read_text() for w in ("import threading", "concurrent.futures"))
    }
    assert users <= {"pipeline", "execution", "stages", "store", "tiers", "kernels", "checkpoint"}
    owners = {top(p) for p in MODULES if "ThreadPoolExecutor(" in p.read_text()}
    assert owners == {"execution"}


def test_the_extension_does_not_link_libtorch() -> None:
    import subprocess

    from tiered_embed import _native

    linked = subprocess.run(
        ["readelf", "-d", _native.__file__], capture_output=True, text=True, check=True
    ).stdout
    assert "torch" not in linked
    assert "libc10" not in linked

"""``tools/imports.py``: the package passes, and a circle or an arrow upwards is found and named."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

nx = pytest.importorskip("networkx")

TOOL = Path(__file__).resolve().parents[2] / "tools" / "imports.py"
LAYERS = {"low": 0, "middle": 1, "high": 2}


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("imports_tool", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "imports_tool", module)
    spec.loader.exec_module(module)
    return module


def test_the_package_has_no_circle_and_no_arrow_upwards(imports: ModuleType) -> None:
    known = imports.layers()
    graph = imports.import_graph(known)
    assert imports.problems(graph, known) == []
    assert graph.has_edge("spec", "optim")
    assert graph.has_edge("store", "_rocksdb"), "loaded by name"
    assert graph.has_edge("examples", "__init__"), "import tiered_embed as te"


def test_what_is_wrong_is_named(imports: ModuleType) -> None:
    down = nx.DiGraph([("high", "low"), ("high", "middle"), ("middle", "low")])
    assert imports.problems(down, LAYERS) == []
    up = nx.DiGraph([("low", "high")])
    assert imports.problems(up, LAYERS) == [
        "low (layer 0) imports high (layer 2); imports go to a lower layer"
    ]
    circle = nx.DiGraph([("high", "low"), ("low", "high")])
    assert any(text.startswith("circle: ") for text in imports.problems(circle, LAYERS))
    assert imports.problems(nx.DiGraph([("new", "low")]), LAYERS) == ["new has no layer"]


def test_the_picture_carries_its_arrows(imports: ModuleType, tmp_path: Path) -> None:
    graph = nx.DiGraph([("high", "low"), ("high", "middle")])
    picture = tmp_path / "imports.svg"
    imports.draw(graph, LAYERS, picture)
    first = picture.read_bytes()
    assert imports.edges_of(graph) == "high > low, high > middle"
    assert imports.shown(picture) == imports.edges_of(graph)
    imports.draw(graph, LAYERS, picture)
    assert picture.read_bytes() == first, "the same picture has the same bytes"

"""Every remedy that a message names exists: names below ``te``, keyword arguments, methods."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import tiered_embed as te
from tiered_embed import bench, checkpoint, engine, simulate, spec, store, tiers, traces

PACKAGE = Path(te.__file__).parent
NATIVE = PACKAGE.parent / "native"
NAME = re.compile(r"\bte\.([A-Za-z_][\w.]*\w)")
KEYWORD = re.compile(r"(?<![\w.%])([a-z_][a-z0-9_]*)=(?![= ])")
CALL = re.compile(r"(?<![\w.])([a-z_][a-z0-9_]{2,})\(")
# What calls look like that are none of ours.
OTHERS = {"stride_per_key", "pip", "torch", "numpy", "tensor", "fsync"}


def messages() -> Iterator[tuple[str, str]]:
    """(place, text) of every string that is raised or logged."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and speaks(node.func)):
                text = "".join(
                    part.value
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", text
    for path in sorted((NATIVE / "store").glob("*.cc")):
        for call in re.findall(r"throw StoreException\((.*?)\);", path.read_text(), re.DOTALL):
            yield path.name, "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', call))


def speaks(function: ast.expr) -> bool:
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name.endswith(("Error", "warning", "warn", "_corrupt"))


def public() -> Iterator[Any]:
    for module in (te, checkpoint, bench, engine, simulate, spec, store, tiers, traces):
        for name in module.__all__:
            yield getattr(module, name, None)
    yield from vars(te.init).values()
    yield from vars(te.optim).values()


def callables() -> Iterator[tuple[str, Any]]:
    for thing in public():
        if callable(thing):
            yield getattr(thing, "__name__", ""), thing
        if inspect.isclass(thing):
            yield from inspect.getmembers(thing, callable)


# And what they take.
THEIRS = {"retain_graph"}

KEYWORDS = {*spec.EngineOptions.__dataclass_fields__, *THEIRS}
CALLS = set(OTHERS)
for called, function in callables():
    CALLS.add(called)
    try:
        KEYWORDS.update(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        continue


def wrong(text: str) -> Iterator[str]:
    for path in NAME.findall(text):
        found: Any = te
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is None:
            yield f"there is no te.{path}"
    for keyword in KEYWORD.findall(text):
        if keyword not in KEYWORDS:
            yield f"nothing takes {keyword}="
    for call in CALL.findall(text):
        if call not in CALLS and not hasattr(torch.Tensor, call):
            yield f"there is no {call}()"


def test_what_messages_name_exists() -> None:
    found = list(messages())
    assert len(found) > 400
    assert [f"{place}: {fact}" for place, text in found for fact in wrong(text)] == []


def test_what_does_not_exist_is_found() -> None:
    text = "use te.reopen(path), te.checkpoint.undo, deptth=2 or refresh()"
    assert len(list(wrong(text))) == 4

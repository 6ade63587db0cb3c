"""Checks which package of tiered_embed imports which, and draws it: ``docs/imports.svg``.

    python tools/imports.py                      checks only
    python tools/imports.py docs/imports.svg     checks, then draws
    python tools/imports.py --check docs/imports.svg     checks, and that the picture is up to date

Fails when packages import each other in a circle, when an import goes to the same or a higher
layer, and when a package has no layer. The layers are those of ``test_architecture.py``, read from
there so that they are written down once. Imports are read from the source; nothing is imported or
run. The extensions ``_native`` and ``_rocksdb`` count as packages.

The picture shows an arrow for every import between packages. An arrow from A to C is light if a
longer way leads there too: A imports B, which imports C. The others are dark.
"""

import argparse
import ast
import re
import sys
from pathlib import Path
from xml.sax.saxutils import unescape

import networkx as nx

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "tiered_embed"
WIDTH, HEIGHT = 3.2, 1.15  # between packages and between layers, in the picture
PUBLIC = "__init__"  # the package's own public names
NAMES = {
    PUBLIC: "tiered_embed\n(public names)",
    "_native": "_native\n(C++)",
    "_rocksdb": "_rocksdb\n(C++)",
}


def layers() -> dict[str, int]:
    """Layer of every package, 0 at the bottom."""
    (test,) = ROOT.glob("tests/**/test_architecture.py")
    for node in ast.parse(test.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            found: dict[str, int] = ast.literal_eval(node.value)
            return found
    raise SystemExit(f"{test.relative_to(ROOT)} has no LAYERS")


def package_of(path: Path) -> str:
    relative = path.relative_to(ROOT / PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path: Path, known: dict[str, int]) -> set[str]:
    """Packages of tiered_embed that a file imports, wherever in the file."""
    here = (PACKAGE, *path.relative_to(ROOT / PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split("."))
            full = [(*module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            full = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            full = [
                tuple(arg.value.split(".")) for arg in node.args if isinstance(arg, ast.Constant)
            ]
        else:
            continue
        for parts in ([part for part in parts if part] for parts in full):
            if parts[0] == PACKAGE:
                found.add(parts[1] if len(parts) > 1 and parts[1] in known else PUBLIC)
    return found


def import_graph(known: dict[str, int]) -> nx.DiGraph:
    graph = nx.DiGraph()
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        mine = package_of(path)
        graph.add_node(mine)
        graph.add_edges_from((mine, other) for other in imported(path, known) if other != mine)
    return graph


def problems(graph: nx.DiGraph, known: dict[str, int]) -> list[str]:
    """What is wrong with the imports, one sentence each."""
    found = [f"{name} has no layer" for name in sorted(set(graph) - set(known))]
    if found:
        return found
    for circle in nx.simple_cycles(graph):
        found.append("circle: " + " imports ".join([*circle, circle[0]]))
    for upper, lower in sorted(graph.edges):
        if known[lower] >= known[upper]:
            found.append(
                f"{upper} (layer {known[upper]}) imports {lower} (layer {known[lower]}); "
                "imports go to a lower layer"
            )
    return found


def edges_of(graph: nx.DiGraph) -> str:
    """The arrows as text, which the picture carries as its description."""
    return ", ".join(f"{upper} > {lower}" for upper, lower in sorted(graph.edges))


def shown(picture: Path) -> str:
    """The arrows that a picture was drawn from."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", picture.read_text(), re.DOTALL)
    return unescape(found[1]) if found else ""


def draw(graph: nx.DiGraph, known: dict[str, int], path: Path) -> None:
    """Draws packages by layer, with an arrow per import, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch

    rows: dict[int, list[str]] = {}
    for name in sorted(graph):
        rows.setdefault(known[name], []).append(name)
    place = {}
    alone = 0
    for height, layer in enumerate(sorted(rows)):
        names = rows[layer]
        for i, name in enumerate(names):
            x = (i - (len(names) - 1) / 2) * WIDTH
            if len(names) == 1:
                # Rows of one take turns, so that long arrows have room to pass.
                x = (-0.7 * WIDTH, 0.7 * WIDTH, 0.0)[alone % 3]
                alone += 1
            place[name] = (x, height * HEIGHT)

    figure = Figure(figsize=(10, 11))
    axes = figure.subplots()
    needed = nx.transitive_reduction(graph)
    for upper, lower in sorted(graph.edges):
        (x0, y0), (x1, y1) = place[upper], place[lower]
        dark = needed.has_edge(upper, lower)
        far = (y0 - y1) / HEIGHT
        bend = 0.0 if far < 1.5 else (0.16 if (x0 + x1) >= 0 else -0.16)
        axes.add_patch(
            FancyArrowPatch(
                (x0, y0 - 0.3),
                (x1, y1 + 0.3),
                connectionstyle=f"arc3,rad={-bend}",
                arrowstyle="-|>",
                mutation_scale=11 if dark else 8,
                color="#1f3b57" if dark else "#d5dce4",
                linewidth=1.4 if dark else 0.7,
                zorder=2 if dark else 1,
            )
        )
    for name, (x, y) in place.items():
        native = name.startswith(("_native", "_rocksdb"))
        axes.text(
            x,
            y,
            NAMES.get(name, name),
            ha="center",
            va="center",
            fontsize=10,
            family="monospace",
            zorder=3,
            bbox={
                "boxstyle": "round,pad=0.4",
                "facecolor": "#fbe7c6" if native else "#e8f0f8",
                "edgecolor": "#1f3b57",
            },
        )
    for height, layer in enumerate(sorted(rows)):
        axes.text(-1.5 * WIDTH, height * HEIGHT, str(layer), color="#8795a5", va="center")
    axes.set_xlim(-1.5 * WIDTH, 1.5 * WIDTH)
    axes.set_ylim(-0.7, (len(rows) - 1) * HEIGHT + 0.7)
    axes.set_axis_off()
    # The same picture has the same bytes, and text stays text.
    with matplotlib.rc_context({"svg.hashsalt": "imports", "svg.fonttype": "none"}):
        figure.savefig(
            path, bbox_inches="tight", metadata={"Date": None, "Description": edges_of(graph)}
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", type=Path, help="the SVG to write")
    parser.add_argument("--check", action="store_true", help="compare with the SVG, write nothing")
    arguments = parser.parse_args()

    known = layers()
    graph = import_graph(known)
    wrong = problems(graph, known)
    if wrong:
        sys.exit("imports: " + "\nimports: ".join(wrong))
    print(
        f"imports: {len(graph)} packages, {graph.number_of_edges()} arrows, all of them downwards"
    )
    if arguments.picture is None:
        return
    if not arguments.check:
        draw(graph, known, arguments.picture)
        print(f"imports: wrote {arguments.picture}")
    elif edges_of(graph) != shown(arguments.picture):
        sys.exit(
            f"imports: {arguments.picture} shows other imports than the source has; "
            f"run: python tools/imports.py {arguments.picture}"
        )


if __name__ == "__main__":
    main()

"""``tiered-embed simulate``: a thin face of ``tiered_embed.simulate``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from .. import optim
from ..residency import POLICIES
from ..spec import Tiers, parse_bytes
from .console import Screen
from .options import DEFAULTS, PICTURES, AsJson, Depth, check_writable, existing, refuse_given
from .progress import LateBar
from .trace_source import (
    Batch,
    ColumnNames,
    FormatName,
    HeaderNames,
    LayoutName,
    Missing,
    ObjectColumn,
    open_source,
)

if TYPE_CHECKING:
    from ..simulate import ReplayResult, Study
    from ..traces import Trace

__all__ = ["simulate"]

OPTIMIZERS = ("SGD", "RowWiseAdagrad", "Adagrad", "Adam", "RowWiseRMSProp", "FTRL")
DEFAULT_POLICIES = "lru,lfu,s3fifo,lookahead,belady:batch"


def simulate(
    context: typer.Context,
    trace: Annotated[
        Path, typer.Argument(help="An id stream in any format that `tiered-embed trace` knows.")
    ],
    sizes: Annotated[
        str,
        typer.Option(
            help="Cache sizes: shares of the distinct rows (10%), rows, or bytes (64MiB)."
        ),
    ] = "1%,5%,10%,20%",
    policies: Annotated[
        str,
        typer.Option(
            help="The runtime's own policies, access:NAME, libcachesim:NAME, belady, belady:batch."
        ),
    ] = DEFAULT_POLICIES,
    format: FormatName = "auto",
    columns: ColumnNames = None,
    header: HeaderNames = None,
    missing: Missing = None,
    layout: LayoutName = None,
    object_column: ObjectColumn = 2,
    batch: Batch = None,
    lookahead: Annotated[
        int, typer.Option(min=0, help="How many future batches the policy knows.")
    ] = DEFAULTS["lookahead"],
    depth: Depth = DEFAULTS["depth"],
    dim: Annotated[int, typer.Option(min=1, help="Columns of a row, to convert bytes.")] = 64,
    optimizer: Annotated[
        str, typer.Option(help=f"Its state is part of a row: {', '.join(OPTIMIZERS)}.")
    ] = "RowWiseAdagrad",
    dtype: Annotated[
        str, typer.Option(help="Type of the weights: float32, float16 or bfloat16.")
    ] = "float32",
    within: Annotated[
        str,
        typer.Option(
            help="What the curve counts: batch (unique rows of a batch) or access (every id)."
        ),
    ] = "batch",
    estimates: Annotated[
        bool, typer.Option(help="Also estimate the curve, and show how far off that is.")
    ] = True,
    ddr: Annotated[
        str | None,
        typer.Option(help="Instead: count one run with this DDR budget and the first policy."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves (PNG).")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a report as one self-contained page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count the hits that caches of any size would have on an id stream, without training."""
    try:
        from ..simulate import Records, charts, report, study
    except ImportError as error:
        raise typer.BadParameter(f"{error}; pip install 'tiered_embed[sim]'") from error
    source = existing(trace)
    check_writable(plot, PICTURES)
    check_writable(html)
    if optimizer not in OPTIMIZERS:
        raise typer.BadParameter(
            f"optimizer is {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}"
        )
    records = Records(dim, getattr(optim, optimizer)(lr=0.01), dtype)
    opened = open_source(source, format, batch, columns, missing, layout, object_column, header)
    names = [name.strip() for name in policies.split(",") if name.strip()]
    console = Screen(stderr=as_json)
    if ddr is not None:
        not_used = ("sizes", "within", "estimates", "plot", "html")
        refuse_given(
            context, not_used, "describes a study of several sizes, and not one run (--ddr)"
        )
        if len(names) != 1 and policies != DEFAULT_POLICIES:
            raise typer.BadParameter(f"--ddr counts one run; pass one policy, not {policies!r}")
        _one(opened, ddr, names[0], lookahead, depth, records, console, as_json)
        return
    record_bytes = records.pools(opened.tables)[0].record_bytes
    options = study.StudyOptions(
        sizes=[_size(text, record_bytes) for text in sizes.split(",")],
        policies=names,
        lookahead=lookahead,
        depth=depth,
        within=cast(Any, within),
        estimates=estimates,
        records=records,
    )
    with LateBar("", None) as bar:
        found = study.study(
            opened,
            options,
            name=source.name,
            progress=lambda what, done, total: bar.update(done, total, what),
        )
    if plot is not None:
        charts.draw(found, plot)
    if html is not None:
        html.write_text(report.html(found), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _show(console, found)
        for path in (plot, html):
            if path is not None:
                console.print(f"written: {path}")


def _size(text: str, record_bytes: int) -> float:
    """Rows, or a share below 1."""
    text = text.strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            if not 0 < share < 1:
                raise ValueError(text)
            return share
        if re.fullmatch(r"[0-9.]+([eE]\+?[0-9]{1,2})?", text):
            rows = Decimal(text)
            if rows < 1 or rows != rows.to_integral_value():
                raise ValueError(text)
            return int(rows)
        rows_in = parse_bytes(text) // record_bytes
    except (ValueError, ArithmeticError) as error:
        raise typer.BadParameter(
            f"size {text!r} is not a cache size; pass 10% (above 0% and below 100%), a whole number"
            " of rows, or bytes such as 64MiB"
        ) from error
    if rows_in == 0:
        raise typer.BadParameter(f"size {text!r} holds no row: a row takes {record_bytes} bytes")
    return rows_in


def _one(
    trace: Trace,
    ddr: str,
    policy: str,
    lookahead: int,
    depth: int,
    records: Any,
    console: Console,
    as_json: bool,
) -> None:
    from ..simulate import replay

    if policy not in POLICIES:
        raise typer.BadParameter(
            f"--ddr counts a run, which needs a policy of the runtime and not {policy!r}; choose "
            f"one of {', '.join(POLICIES)}"
        )
    tiers = Tiers(ddr=ddr, ssd=Path("ssd"))  # no file is touched
    result = replay(trace, tiers, policy, lookahead, depth, records=records)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        console.print(_counts(result))


def _counts(result: ReplayResult) -> Table:
    title = (
        f"{result.policy}, {result.steps:,} batches, {result.slots:,} slots, window "
        f"{result.lookahead}, depth {result.depth}"
    )
    columns = ("lookups", "unique", "hits", "misses", "cold", "evicted", "written_back", "overflow")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in (*columns, "hit rate"):
        table.add_column(name.replace("_", " "), justify="right")
    parts = {**result.tiers, **(result.tables if len(result.tables) > 1 else {})}
    for name, counts in parts.items():
        cells = [f"{getattr(counts, column):,}" for column in columns]
        table.add_row(name, *cells, f"{counts.hit_rate:.4f}")
    return table


def _show(console: Console, found: Study) -> None:
    from ..simulate import charts, size_text, table_rows

    console.print(
        f"{found.name}: {found.curve.lookups:,.0f} lookups in {found.steps:,} batches, "
        f"{found.num_rows:,} distinct rows of {found.record_bytes} bytes "
        f"({size_text(found.num_rows * found.record_bytes)}); at most "
        f"{1 - found.curve.cold / max(1.0, found.curve.lookups):.4f} of the lookups can hit"
    )
    heads = [f"{size:,}\n{size_text(size * found.record_bytes)}" for size in found.sizes]
    for within in found.kinds:
        rows: dict[str, Any] = {p.policy: p.hit_rates for p in found.policies_of(within)}
        rows["LRU curve"] = list(found.curve_of(within).hit_rate(found.sizes))
        if within == found.options.within:
            rows |= {c.method: list(c.hit_rate(found.sizes)) for c in found.estimates}
        title = f"hit rate per lookup, by cache size, counted {charts.LOOKUPS[within]}"
        console.print(title, soft_wrap=True)
        console.print(_rates("policy", heads, rows))
        if any(None in rates for rates in rows.values()):
            console.print(f"-: too small for the rows of {found.options.depth + 1} batches")
    for method, error in found.errors.items():
        console.print(
            f"{method}: off by {error.mean:.4f} on average and {error.most:.4f} at most "
            f"(at {error.at_size:,.0f} rows)"
        )
    if len(found.rows) > 1:
        rows = {
            f"{r['table']} ({r['share']:.1%} of lookups, {r['rows']:,} rows)": r["hit_rates"]
            for r in table_rows(found)
        }
        within = found.options.within
        console.print(f"hit rate of each table when all share one LRU cache, counted by {within}")
        console.print(_rates("table", heads, rows))


def _rates(what: str, heads: list[str], rows: dict[str, Any]) -> Table:
    table = Table()
    table.add_column(what)
    for head in heads:
        table.add_column(head, justify="right")
    show: Callable[[float | None], str] = lambda r: "-" if r is None else f"{r:.4f}"  # noqa: E731
    for name, rates in rows.items():
        table.add_row(name, *map(show, rates))
    return table

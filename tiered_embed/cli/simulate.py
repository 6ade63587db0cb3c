"""``tiered-embed simulate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import optim
from ..errors import ConfigError
from ..residency import POLICIES
from ..spec import Tiers, parse_bytes
from ..traces import open_trace

if TYPE_CHECKING:
    from ..simulate import ReplayResult, Study
    from ..traces import Trace

__all__ = ["simulate"]

OPTIMIZERS = ("SGD", "RowWiseAdagrad", "Adagrad", "Adam", "RowWiseRMSProp", "FTRL")
DEFAULT_POLICIES = "lru,lfu,s3fifo,lookahead,belady:batch"


def simulate(
    trace: Annotated[Path, typer.Argument(help="An id stream; see `tiered-embed trace`.")],
    sizes: Annotated[
        str, typer.Option(help="Cache sizes: 1%,10% of the distinct rows, 5000 rows, or 64MiB.")
    ] = "1%,5%,10%,20%",
    policies: Annotated[
        str, typer.Option(help="Also access:NAME, libcachesim:NAME and belady.")
    ] = DEFAULT_POLICIES,
    format: Annotated[str, typer.Option(help="Of the trace; auto looks into it.")] = "auto",
    columns: Annotated[
        str | None, typer.Option(help="Id columns of csv, tsv, parquet: table=column,...")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Cut the trace into so many samples a batch.")
    ] = None,
    lookahead: Annotated[int, typer.Option(min=0, help="Known future batches.")] = 32,
    depth: Annotated[int, typer.Option(min=0, help="Batches staged ahead.")] = 2,
    dim: Annotated[int, typer.Option(min=1, help="Columns of a row, for bytes.")] = 64,
    optimizer: Annotated[str, typer.Option(help=", ".join(OPTIMIZERS))] = "RowWiseAdagrad",
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "float32",
    within: Annotated[
        str, typer.Option(help="The curve counts per unique row of a batch, or per access.")
    ] = "batch",
    estimates: Annotated[bool, typer.Option(help="Also the curve's estimates.")] = True,
    ddr: Annotated[
        str | None,
        typer.Option(help="Count one run exactly instead: this DDR budget, the first policy."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves (PNG).")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report, one page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Tell every hit of an id stream before a byte is bought: sizes, policies, bounds."""
    try:
        from ..simulate import Records, charts, report, study
    except ImportError as error:
        raise typer.BadParameter(f"{error}; pip install 'tiered_embed[sim]'") from error
    if not trace.exists():
        raise typer.BadParameter(f"no file {trace}")
    if optimizer not in OPTIMIZERS:
        raise typer.BadParameter(f"optimizer is {optimizer!r}; choose {', '.join(OPTIMIZERS)}")
    records = Records(dim, getattr(optim, optimizer)(lr=0.01), dtype)
    opened = _open(trace, format, batch, columns)
    names = [name.strip() for name in policies.split(",") if name.strip()]
    console = Console(highlight=False, stderr=as_json)
    if ddr is not None:
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
    with _bar() as bar:
        task = bar.add_task("")

        def told(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        found = study.study(opened, options, name=trace.name, told=told)
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


def _open(path: Path, format: str, batch: int | None, columns: str | None) -> Trace:
    pairs = [each.partition("=") for each in columns.split(",")] if columns else []
    names = {table: column or table for table, _, column in pairs} or None
    return open_trace(path, cast(Any, format), batch=batch, columns=names)


def _size(text: str, record_bytes: int) -> float:
    """Rows, or a share below 1."""
    text = text.strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            if not 0 < share < 1:
                raise ConfigError(f"size {text!r} must lie between 0 % and 100 %")
            return share
        return int(text) if text.isdecimal() else max(1, parse_bytes(text) // record_bytes)
    except ValueError as error:
        raise typer.BadParameter(
            f"size {text!r} is none; pass 10%, a number of rows, or bytes such as 64MiB"
        ) from error


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


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
        raise typer.BadParameter(f"--ddr counts a run: choose one of {', '.join(POLICIES)}")
    tiers = Tiers(ddr=ddr, ssd=Path("ssd"))  # only that there is one matters
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
    from ..simulate import size_text, table_rows

    console.print(
        f"{found.name}: {found.curve.lookups:,.0f} lookups in {found.steps:,} batches, "
        f"{found.num_rows:,} distinct rows of {found.record_bytes} bytes "
        f"({size_text(found.num_rows * found.record_bytes)}); at most "
        f"{1 - found.curve.cold / max(1.0, found.curve.lookups):.4f} of them can hit"
    )
    heads = [f"{size:,}\n{size_text(size * found.record_bytes)}" for size in found.sizes]
    console.print(
        _rates(
            "hit rate per lookup, by rows of cache",
            "policy",
            heads,
            {p.policy: p.hit_rates for p in found.policies}
            | {"LRU curve": list(found.curve.hit_rate(found.sizes))}
            | {c.method: list(c.hit_rate(found.sizes)) for c in found.estimates},
        )
    )
    for method, error in found.errors.items():
        console.print(
            f"{method}: off by {error.mean:.4f} in the mean, {error.most:.4f} at most "
            f"(at {error.at_size:,.0f} rows)"
        )
    if len(found.rows) > 1:
        rows = {
            f"{r['table']} ({r['share']:.1%} of lookups, {r['rows']:,} rows)": r["hit_rates"]
            for r in table_rows(found)
        }
        console.print(_rates("tables in one cache, LRU", "table", heads, rows))


def _rates(title: str, what: str, heads: list[str], rows: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(what)
    for head in heads:
        table.add_column(head, justify="right")
    show: Callable[[float | None], str] = lambda r: "-" if r is None else f"{r:.4f}"  # noqa: E731
    for name, rates in rows.items():
        table.add_row(name, *map(show, rates))
    return table

"""Runs every kind of torture and prints a table of counts: ``make torture``.

Each kind is a process of its own; two run at a time. Exits with 1 when something failed, or when a
full run did less than a kind asks for.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import shim
from kinds import KINDS, Kind
from report import Report

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIME_LIMIT_S = 3600


def run_kind(name: str, count: int, seed: int) -> tuple[Report, float]:
    """The report of ``count`` of a kind, and the seconds that it took."""
    kind = KINDS[name]
    environment = dict(os.environ)
    if kind.forks:
        environment["LD_PRELOAD"] = str(shim.build())
    command = [sys.executable, str(HERE / "one_kind.py"), name]
    command += ["--count", str(count), "--seed", str(seed)]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=TIME_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        report = Report()
        report.fail(f"{name} did not end within {TIME_LIMIT_S} seconds")
        return report, time.perf_counter() - start
    lines = done.stdout.strip().splitlines()
    if done.returncode not in (0, 1) or not lines:
        report = Report()
        report.fail(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    else:
        report = Report.from_json(lines[-1])
    return report, time.perf_counter() - start


def share_of(kind: Kind, share: float) -> int:
    """A kind's count in a run of a share of the full one."""
    if share >= 1:
        return kind.count
    return max(kind.short, int(kind.count * share)) if kind.per_mille else kind.short


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="some of: " + ", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts")
    parser.add_argument(
        "--json", type=Path, help="write the counts here; kinds that do not run now keep theirs"
    )
    args = parser.parse_args()
    unknown = set(args.kinds) - set(KINDS)
    if unknown:
        parser.error(f"no kind {sorted(unknown)}; there are {', '.join(KINDS)}")
    names = args.kinds or list(KINDS)
    console = Console(highlight=False)
    console.print(f"seed {args.seed}")

    def run(name: str) -> tuple[Report, float]:
        report, seconds = run_kind(name, share_of(KINDS[name], args.share), args.seed)
        fate = f"{report.failures} failures" if report.failures else report.skipped or "good"
        console.print(f"  {name}: {report.done:,} in {seconds:.0f} s: {fate}")
        return report, seconds

    made = origin()  # before anything runs: the tree may change meanwhile
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(names, pool.map(run, names), strict=True))
    show(console, results, time.perf_counter() - start)
    short = [n for n in names if args.share >= 1 and results[n][0].done < KINDS[n].at_least]
    for name in short:
        console.print(f"[red]{name}: {results[name][0].done:,} of {KINDS[name].at_least:,}[/red]")
    if args.json is not None:
        write(args.json, made, args.seed, results)
    return 1 if short or any(report.failures for report, _ in results.values()) else 0


def show(console: Console, results: dict[str, tuple[Report, float]], seconds: float) -> None:
    table = Table(title=f"torture, {seconds / 60:.1f} minutes", title_justify="left")
    for column in ("what", "count", "expected", "failures", "s"):
        table.add_column(column, justify="left" if column in ("what", "expected") else "right")
    for name, (report, took_s) in results.items():
        kind = KINDS[name]
        verdict = report.skipped or str(report.failures)
        table.add_row(kind.title, f"{report.done:,}", kind.expected, verdict, f"{took_s:.0f}")
    console.print(table)
    for name, (report, _) in results.items():
        for message in report.messages:
            console.print(f"[red]{name}[/red]: {message}", markup=True)


def origin() -> dict[str, Any]:
    """Where, when and of which commit this run is."""
    sys.path.append(str(ROOT))
    from benchmarks.support.reports import report

    return report("torture", {})


def write(
    path: Path, made: dict[str, Any], seed: int, results: dict[str, tuple[Report, float]]
) -> None:
    """``made``: the run's :func:`origin`."""
    kinds = json.loads(path.read_text())["kinds"] if path.exists() else {}
    for name, (report, took_s) in results.items():
        when = {"seed": seed, "commit": made["commit"], "started": made["started"]}
        title = {"title": KINDS[name].title, "seconds": took_s}
        # Without tracebacks, which name this machine's paths.
        brief = [
            " ... ".join(m.splitlines()[:: max(1, m.count("\n"))][:2]) for m in report.messages
        ]
        kinds[name] = {**title, **when, **vars(report), "messages": brief}
    path.write_text(json.dumps({**made, "kinds": kinds}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

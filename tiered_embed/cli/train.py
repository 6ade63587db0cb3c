"""``tiered-embed train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..residency import POLICIES
from ..spec import Tiers

__all__ = ["train"]


def train(
    log: Annotated[Path, typer.Argument(help="Criteo log: Kaggle or day file, plain, .gz or .xz.")],
    hbm: Annotated[
        str | None, typer.Option(help="Budget of an HBM tier, here in host memory.")
    ] = None,
    ddr: Annotated[str, typer.Option(help="DDR budget, such as 512MiB.")] = "512MiB",
    ssd: Annotated[Path | None, typer.Option(help="Directory of the SSD tier.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    policy: Annotated[str, typer.Option(help=", ".join(POLICIES))] = "lookahead",
    lookahead: Annotated[int, typer.Option(min=0, help="Known future batches.")] = 32,
    depth: Annotated[int, typer.Option(min=0, help="Batches staged ahead.")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a DLRM on a Criteo log and print held-out scores, counts and the digest."""
    try:
        from ..examples import demo  # needs the extra `demo`
    except ImportError as error:
        raise typer.BadParameter(f"{error}; pip install 'tiered_embed[demo]'") from error
    from ..traces import CriteoOptions, CriteoReader

    if not log.exists():
        raise typer.BadParameter(f"no file {log}")
    settings = demo.Settings(epochs, lookahead, depth, policy, seed)
    train_log = CriteoReader(log, CriteoOptions(batch_size=batch_size, part="train"))
    heldout_log = CriteoReader(log, CriteoOptions(batch_size=512, part="heldout"))
    demo.console.stderr = as_json
    num_steps = epochs * sum(1 for _ in train_log)
    tiers = Tiers(hbm=hbm, ddr=ddr, ssd=ssd)
    result = demo.run("train", tiers, settings, train_log, heldout_log, num_steps)
    out = {
        "auc": result.scores.auc,
        "log_loss": result.scores.log_loss,
        "train_s": result.train_s,
        "digest": result.digest,
        "stats": result.stats,
    }
    if as_json:
        typer.echo(json.dumps(out, indent=2))
        return
    demo.console.print(f"AUC {out['auc']:.4f}, log loss {out['log_loss']:.4f}")
    for name, tier in result.stats["tiers"].items():
        counts = "  ".join(f"{key} {tier[key]:,}" for key in ("lookups", "hits", "misses"))
        demo.console.print(f"{name}: {counts}")
    demo.console.print(f"digest {result.digest}")

"""``tiered-embed train``: a thin face of ``examples.demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..spec import Tiers
from ..traces import CriteoOptions, CriteoReader
from .options import DEFAULTS, AsJson, Ddr, Depth, Lookahead, Policy, Seed, Ssd, existing

__all__ = ["train"]

# A batch looks a row up several times, and asks for it once: hits and misses make up the rows.
_WORDS = {"lookups": "lookups", "unique": "rows", "hits": "hits", "misses": "misses"}


def train(
    log: Annotated[
        Path, typer.Argument(help="Criteo log: the Kaggle file or a day, plain, .gz or .xz.")
    ],
    hbm: Annotated[
        str | None,
        typer.Option(
            help="HBM budget, such as 1GiB; always in host memory, so that digests can be compared "
            "between machines. None by default."
        ),
    ] = None,
    ddr: Ddr = "512MiB",
    ssd: Ssd = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the log.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 128,
    policy: Policy = DEFAULTS["policy"],
    lookahead: Lookahead = DEFAULTS["lookahead"],
    depth: Depth = DEFAULTS["depth"],
    seed: Seed = DEFAULTS["seed"],
    as_json: AsJson = False,
) -> None:
    """Train a DLRM on a Criteo log; print held-out scores, counts and the digest of its rows."""
    try:
        from ..examples import demo  # needs the extra `demo`
    except ImportError as error:
        raise typer.BadParameter(f"{error}; pip install 'tiered_embed[demo]'") from error

    log = existing(log)
    if ssd is not None and ssd.is_dir() and any(ssd.iterdir()):
        raise ConfigError(
            f"'{ssd}' is not empty: rows of an earlier training would be trained further beside new"
            " MLPs; pass another directory, or remove it"
        )
    settings = demo.Settings(epochs, lookahead, depth, policy, seed)
    train_log = CriteoReader(log, CriteoOptions(batch_size=batch_size, part="train"))
    heldout_log = CriteoReader(log, CriteoOptions(batch_size=512, part="heldout"))
    demo.console.stderr = as_json
    num_steps = epochs * demo.count_steps(train_log, heldout_log)
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
        parts = [f"{tier[key]:,} {word}" for key, word in _WORDS.items()]
        demo.console.print(f"{name}: {parts[0]} of {', '.join(parts[1:])}")
    demo.console.print(f"digest {result.digest}")

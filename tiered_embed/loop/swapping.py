"""Replaces a model's embedding modules by tiered ones, weights and all.

Finds the modules, decides which can be replaced with nothing lost, shares the DDR budget out among
them, and puts the new ones in. How rows live and train afterwards is ``modules``' business.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from typing_extensions import Unpack

from ..errors import ConfigError, TieredEmbedError
from ..modules import (
    TieredEmbedding,
    TieredEmbeddingBag,
    TieredEmbeddingBagCollection,
    TieredModule,
)
from ..optim import Optimizer
from ..residency import fair_shares
from ..spec import (
    DTYPES,
    Constant,
    EngineKeywords,
    TableConfig,
    Tiers,
    options_from_keywords,
    parse_bytes,
)
from ..tiers import PoolLayout
from .candidates import CARRIED_HOOKS, OWN_OPTIONS, Candidate, find, is_embedding

__all__ = ["SwapEntry", "SwapReport", "swap"]

COPY_BYTES = 64 << 20


@dataclass(frozen=True)
class SwapEntry:
    """One table that :func:`swap` looked at.

    path: the module's dotted path, and its collection's table; the name of the tiered table.
    class_name: of the module that was found.
    weight_bytes: of the weights alone.
    reason: why the module was left as it was; empty when it was swapped.
    other_paths: further places of the same module.
    """

    path: str
    class_name: str
    num_embeddings: int
    embedding_dim: int
    weight_bytes: int
    reason: str = ""
    other_paths: tuple[str, ...] = ()

    @property
    def swapped(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class SwapReport:
    """What :func:`swap` did, in the model's order; ``str()`` is a table to read."""

    entries: tuple[SwapEntry, ...]

    @property
    def swapped(self) -> tuple[SwapEntry, ...]:
        return tuple(entry for entry in self.entries if entry.swapped)

    @property
    def left(self) -> tuple[SwapEntry, ...]:
        return tuple(entry for entry in self.entries if not entry.swapped)

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [("module", "class", "rows", "dim", "bytes", "")]
        for entry in self.entries:
            path = ", ".join((entry.path, *entry.other_paths))
            numbers = (entry.num_embeddings, entry.embedding_dim, entry.weight_bytes)
            outcome = "swapped" if entry.swapped else f"left: {entry.reason}"
            lines.append((path, entry.class_name, *(f"{n:,}" for n in numbers), outcome))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        text = [
            "  ".join(
                cell.rjust(width) if 2 <= i <= 4 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, [*widths, 0], strict=True))
            ).rstrip()
            for line in lines
        ]
        some, every = (
            sum(entry.weight_bytes for entry in entries) for entries in (self.swapped, self.entries)
        )
        text.append(
            f"{len(self.swapped)} of {len(self.entries)} tables swapped, "
            f"{some:,} of {every:,} bytes"
        )
        return "\n".join(text)


def swap(
    model: nn.Module,
    *,
    min_bytes: int | str = 0,
    include: Callable[[str, nn.Module], bool] | None = None,
    **options: Unpack[EngineKeywords],
) -> SwapReport:
    """Replaces ``nn.EmbeddingBag``, ``nn.Embedding`` and TorchRec collections in ``model``.

    Weights, arguments, dtype, train or eval mode, forward hooks and forward pre-hooks (with their
    handles) are carried over; a module used at several places stays one. Weights that do not
    require a gradient are only read. A table's name is the path of its module, and of its
    collection's table.

    Swap before you make the dense optimizer: swapped tables are no longer parameters, and one made
    earlier would hold them. Likewise before ``DistributedDataParallel`` and ``torch.compile``, and
    after ``copy.deepcopy`` and ``model.to(dtype)``, which do not reach tiered rows. Peak memory is
    the tables and the DDR budget together: the old modules stay until the last new one is filled.

    What would change the model is left, with the reason in the report: subclasses; weights that are
    shared with another module or parameter, parametrized, or have gradient hooks; modules with
    backward or state_dict hooks, a patched ``forward``, or children; other dtypes and devices.
    Tensors that are reached otherwise than as parameters and buffers of ``model`` are not seen.

    A fused optimizer runs once per forward that is differentiated: a module that is called twice in
    a step takes two updates, unless the step is inside ``te.accumulate``.

    Args:
        model: any module that holds embeddings; changed in place, or not at all on an error.
        min_bytes: modules whose weights take less are left.
        include: called with the path and the module; those for which it returns False are left.
        options: the fields of ``te.EngineOptions``, the same for every swapped module; ``tiers``
            and ``optimizer`` are required. Each budget of ``tiers`` covers weights and optimizer
            state of all swapped tables together, and is shared max-min fair; ``ssd`` must hold none
            of these tables yet. ``optimizer=None`` makes every swapped table read-only. Weights
            that are not on ``device`` are left. ``dtype``, ``output_dtype``, ``init``,
            ``max_norm``, ``norm_type`` and ``scale_grad_by_freq`` follow from each module that is
            replaced, and cannot be passed.

    Raises:
        ConfigError: the model is itself an embedding; too small a budget; an argument that cannot
            work; an ssd directory that holds the tables already.
        TypeError: an unknown option, or a required one is missing.
        StoreError: a directory that is unwritable or open elsewhere.
    """
    limit = _checked(model, min_bytes, include)
    for name in OWN_OPTIONS:
        if name in options:
            raise ConfigError(
                f"te.swap takes {name} from each module that it replaces; leave {name} out"
            )
    checked = options_from_keywords("te.swap", options)
    tiers, optimizer = checked.tiers, checked.optimizer
    modules = dict(model.named_modules(remove_duplicate=False))
    found = find(modules, include, limit, checked.compute_device.type)
    chosen = [candidate for candidate in found if not candidate.reason]
    budgets = _share(chosen, tiers, optimizer)
    old = _stores(tiers)
    made: list[TieredModule] = []
    try:
        for candidate, share in zip(chosen, budgets, strict=True):
            # One at a time into the list: a failure closes those before it.
            made.append(_make(candidate, share, options))
        for candidate, module in zip(chosen, made, strict=True):
            _fill(module, candidate)
            _carry(candidate.module, module)
    except BaseException:
        _discard(made, old)
        raise
    report = SwapReport(tuple(entry for candidate in found for entry in _entries(candidate)))
    for candidate, module in zip(chosen, made, strict=True):
        for path in candidate.paths:
            parent, _, child = path.rpartition(".")
            modules[parent]._modules[child] = module
    return report


def _checked(model: object, min_bytes: int | str, include: object) -> int:
    """``min_bytes`` as a number; checks the other arguments too, apart from the options."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; pass an nn.Module")
    if is_embedding(model):
        raise ConfigError(
            f"the model is itself an {type(model).__name__}, which cannot be replaced in place; "
            "make a tiered module by from_pretrained, or pass the module that holds it"
        )
    if include is not None and not callable(include):
        raise ConfigError(f"include is {include!r}; pass a function of path and module")
    return 0 if min_bytes == 0 else parse_bytes(min_bytes, "min_bytes")


def _entries(found: Candidate) -> Iterator[SwapEntry]:
    first, *others = found.paths
    for name in found.tables:
        yield SwapEntry(
            name,
            type(found.module).__name__,
            *found.shape(name),
            found.weight_bytes(name),
            found.reason,
            tuple(path + name.removeprefix(first) for path in others),
        )


def _share(chosen: Sequence[Candidate], tiers: Tiers, optimizer: Optimizer | None) -> list[Tiers]:
    """Of each module: its part of every memory tier, and the store."""
    wanted, least = [], []
    for found in chosen:
        dtype = DTYPES[found.first.weight.dtype]
        spec = None if found.frozen else optimizer
        records = {}
        for name in found.tables:
            rows, dim = found.shape(name)
            records[name] = rows, PoolLayout((), dim, spec, Constant(0.0), 0, dtype).record_bytes
        wanted.append(sum(rows * size for rows, size in records.values()))
        # Tables of one record layout share their slots: one record of each size is the least.
        least.append(sum({size for _, size in records.values()}))
    total = sum(wanted)
    budgets = {"hbm": tiers.hbm, "ddr": tiers.ddr}
    given = {name: size for name, size in budgets.items() if size is not None}
    if tiers.ssd is None and total > sum(given.values()):
        told = " and ".join(f"{name} is {size}" for name, size in given.items())
        raise ConfigError(
            f"the {len(chosen)} modules to swap take {total} bytes of weights and optimizer state, "
            f"{told}, and there is nothing below; raise {' or '.join(given)}, or add an ssd tier"
        )
    out = [tiers] * len(chosen)
    for name, size in given.items():
        shares = fair_shares(wanted, size)
        for i, (found, share, bound) in enumerate(zip(chosen, shares, least, strict=True)):
            if share < bound and wanted[i] > 0:
                raise ConfigError(
                    f"module {found.paths[0]!r} would get {share} bytes of {name}={size}, which "
                    f"{len(chosen)} modules share, but needs {bound} at least; raise {name} or "
                    "min_bytes"
                )
            # Where the tier above holds everything, this one is not needed.
            out[i] = (
                replace(out[i], hbm=share or None)
                if name == "hbm"
                else replace(out[i], ddr=share or None)
            )
        # A row is in one tier at a time.
        wanted = [want - share for want, share in zip(wanted, shares, strict=True)]
    return out


def _make(found: Candidate, tiers: Tiers, common: EngineKeywords) -> TieredModule:
    own = {**found.arguments, "dtype": found.first.weight.dtype, "tiers": tiers}
    if found.frozen:
        own["optimizer"] = None
    options = cast("EngineKeywords", {**common, **own})
    name = next(iter(found.tables))
    rows, dim = found.shape(name)
    module: Any = found.module
    if type(module) is nn.EmbeddingBag:
        return TieredEmbeddingBag(
            rows,
            dim,
            found.first.mode,
            name=name,
            padding_idx=module.padding_idx,
            include_last_offset=module.include_last_offset,
            **options,
        )
    if type(module) is nn.Embedding:
        return TieredEmbedding(rows, dim, name=name, padding_idx=module.padding_idx, **options)
    return _make_collection(found, options)


def _make_collection(found: Candidate, options: EngineKeywords) -> TieredEmbeddingBagCollection:
    collection: Any = found.module
    features = {config.name: config.feature_names for config in collection.embedding_bag_configs()}
    tables = []
    for name in found.tables:
        bag: Any = found.tables[name]
        mine = features[name.removeprefix(f"{found.paths[0]}.")]
        tables.append(TableConfig(name, *found.shape(name), mine, bag.mode, bag.padding_idx))
    options["output_dtype"] = torch.float32  # as TorchRec's, whatever its tables are
    module = TieredEmbeddingBagCollection(tables, is_weighted=collection.is_weighted(), **options)
    module.embedding_names = list(collection._embedding_names)
    return module


def _fill(module: TieredModule, found: Candidate) -> None:
    """Copies the weights.

    An import is faster than writing rows, and needs a pool whose store is empty: the largest table
    of each pool is imported, and the others follow.
    """
    backed = module.engine.options.tiers.ssd is not None
    wiring = module.engine.wiring
    pools = {
        table.name: pool for table, (pool, _) in zip(wiring.tables, wiring.places, strict=True)
    }
    imported: set[int] = set()
    for name in sorted(found.tables, key=lambda name: -found.shape(name)[0]):
        table: Any = found.tables[name]
        weight: torch.Tensor = table.weight.detach()
        chunks = _chunks(weight)
        if backed and pools[name] not in imported:
            imported.add(pools[name])
            module.import_rows(chunks, table=name)
        else:
            for ids, part in chunks:
                module.load_rows(ids, part, table=name)


def _chunks(weight: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    block = max(1, COPY_BYTES // (4 * weight.shape[1]))
    for start in range(0, len(weight), block):
        part = weight[start : start + block]
        yield torch.arange(start, start + len(part)), part


def _carry(old: nn.Module, new: TieredModule) -> None:
    new.train(old.training)
    for kind in CARRIED_HOOKS:
        # The dict itself, not a copy: handles that users hold remove from it.
        setattr(new, kind, getattr(old, kind))


def _stores(tiers: Tiers) -> set[Path]:
    """What the SSD tier's directory holds now, stores among it."""
    return set() if tiers.ssd is None else {path.resolve() for path in tiers.ssd.glob("*")}


def _discard(made: Sequence[TieredModule], old: set[Path]) -> None:
    """Closes the modules and removes the stores that they created."""
    for module in made:
        with suppress(TieredEmbedError):
            module.close()
        for pool in module.engine.pools:
            if pool.store is not None and pool.store.path.resolve() not in old:
                shutil.rmtree(pool.store.path, ignore_errors=True)

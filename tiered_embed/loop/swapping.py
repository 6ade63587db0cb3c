"""``te.swap``: replaces a model's embedding modules with tiered ones that have the same weights.

It divides the memory budgets among the modules that :mod:`.candidates` finds fit for replacement,
makes and fills the tiered ones, and puts them into the model. How rows live and train afterwards is
up to ``modules`` and the engine.

Threading: the caller's thread.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from typing_extensions import Unpack

from ..errors import ConfigError, TieredEmbedError
from ..modules import (
    TieredCollection,
    TieredEmbedding,
    TieredEmbeddingBag,
    TieredEmbeddingBagCollection,
    TieredEmbeddingCollection,
    TieredModule,
)
from ..optim import Optimizer
from ..residency import fair_shares
from ..spec import (
    DTYPES,
    Constant,
    EngineKeywords,
    Mode,
    TableConfig,
    Tiers,
    options_from_keywords,
    parse_bytes,
)
from ..store import table_range
from ..tiers import PoolLayout
from .candidates import CARRIED_HOOKS, OWN_OPTIONS, Candidate, find, is_embedding
from .holders import holders
from .swap_report import SwapEntry, SwapReport

__all__ = ["swap"]

COPY_BYTES = 64 << 20  # of weights that are copied at a time


def swap(
    model: nn.Module,
    *,
    min_bytes: int | str = 0,
    include: Callable[[str, nn.Module], bool] | None = None,
    **options: Unpack[EngineKeywords],
) -> SwapReport:
    """Replaces ``nn.EmbeddingBag``, ``nn.Embedding`` and TorchRec collections in ``model``.

    The tiered modules keep weights, arguments, dtype, train or eval mode, forward hooks and forward
    pre-hooks (with their handles). A module that is used in several places stays one module.
    Weights that do not require a gradient become read-only rows. A table is named after the path of
    its module, followed by the table's name in a collection.

    Call it before you make the dense optimizer: swapped tables are no longer parameters, and an
    optimizer made earlier would still hold them. Also call it before ``DistributedDataParallel``
    and ``torch.compile``, and after ``copy.deepcopy`` and ``model.to(dtype)``, which do not reach
    tiered rows. The old modules stay until the last new one is filled, so peak memory is the tables
    and the DDR budget together.

    A module stays as it is where replacing it would change the model, and the report says why. That
    concerns subclasses; weights that are parametrized, have gradient hooks, or are shared with
    another module or parameter; modules with backward or state_dict hooks, a patched ``forward``,
    or children; and other dtypes and devices. Only parameters and buffers of ``model`` are
    searched for shared weights.

    What else holds a weight that is replaced (an optimizer, a list of a regulariser) is reported
    with a warning, as far as Python's garbage collector knows of it.

    Whether a forward reads the ``weight`` of a module, as for logits or a penalty, cannot be known
    beforehand. Such a model computes the same, but its first training forward raises a ConfigError;
    leave such modules out with ``include``.

    A fused optimizer runs once per forward that is differentiated. A module that is called twice in
    a step is therefore updated twice, unless the step is inside ``te.accumulate``.

    Args:
        model: any module that contains embeddings. It is changed in place; after an error it is
            unchanged.
        min_bytes: modules whose weights take less are left as they are.
        include: called with the path and the module; where it returns False, the module is left.
        options: the fields of ``te.EngineOptions``, the same for every swapped module; ``tiers``
            and ``optimizer`` are required. Each budget of ``tiers`` covers weights and optimizer
            state of all swapped tables together, and is shared max-min fair. ``ssd`` must hold none
            of these tables yet. ``optimizer=None`` makes every swapped table read-only. Weights on
            another kind of device than ``device`` are left. ``dtype``, ``output_dtype``, ``init``,
            ``max_norm``, ``norm_type`` and ``scale_grad_by_freq`` follow from each module that is
            replaced, and cannot be passed.

    Raises:
        ConfigError: the model itself is an embedding; a budget is too small; an argument cannot
            work; the ssd directory holds some of the tables already.
        TypeError: an option is unknown, or a required one is missing.
        StoreError: a directory is unwritable or open elsewhere.
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
            # Appended one by one, so that a failure closes those before it.
            made.append(_make(candidate, share, options))
            _refuse_stored_rows(made[-1])
        for candidate, module in zip(chosen, made, strict=True):
            _fill(module, candidate, old)
            _carry(candidate.module, module)
    except BaseException:
        _discard(made, old)
        raise
    entries = [entry for candidate in found for entry in _entries(candidate)]
    for candidate, module in zip(chosen, made, strict=True):
        for path in candidate.paths:
            parent, _, child = path.rpartition(".")
            modules[parent]._modules[child] = module
    held = _held(chosen)
    if any(held.values()):
        warnings.warn(
            "te.swap replaced weights that are still held elsewhere: "
            + "; ".join(f"{name!r} by {', '.join(who)}" for name, who in held.items() if who)
            + ". What these do with the old weights no longer reaches the rows, and keeps their "
            "memory. Call te.swap before you make them, or leave the modules out with include=",
            UserWarning,
            stacklevel=2,
        )
    return SwapReport(tuple(replace(e, held_by=tuple(held.get(e.path, ()))) for e in entries))


def _held(chosen: Sequence[Candidate]) -> dict[str, list[str]]:
    """Per table, what else holds its old weight."""
    tables = {name: table for found in chosen for name, table in found.tables.items()}
    weights = [table._parameters["weight"] for table in tables.values()]
    known = {id(part) for table in tables.values() for part in (table, table._parameters)}
    plain = [weight for weight in weights if weight is not None]
    return dict(zip(tables, holders(plain, {*known, id(weights)}), strict=True))


def _checked(model: object, min_bytes: int | str, include: object) -> int:
    """Checks the arguments, apart from the options; returns ``min_bytes`` as a number."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; pass an nn.Module")
    if is_embedding(model):
        raise ConfigError(
            f"the model itself is an embedding module, {type(model).__name__}, and cannot be "
            "replaced in place; make a tiered module with from_pretrained, or pass the module that "
            "contains it"
        )
    if include is not None and not callable(include):
        raise ConfigError(f"include is {include!r}; pass a function that takes path and module")
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
    """The tiers of each module: its shares of the memory budgets, and the SSD directory."""
    wanted, least = [], []
    for found in chosen:
        dtype = DTYPES[found.first.weight.dtype]
        spec = None if found.frozen else optimizer
        records = {}
        for name in found.tables:
            rows, dim = found.shape(name)
            records[name] = rows, PoolLayout((), dim, spec, Constant(0.0), 0, dtype).record_bytes
        wanted.append(sum(rows * size for rows, size in records.values()))
        # Tables of one record layout share their slots, so one slot per layout is the minimum.
        least.append(sum({size for _, size in records.values()}))
    total = sum(wanted)
    budgets = {"hbm": tiers.hbm, "ddr": tiers.ddr}
    given = {name: size for name, size in budgets.items() if size is not None}
    if tiers.ssd is None and total > sum(given.values()):
        sizes = " and ".join(f"{name} is {size}" for name, size in given.items())
        raise ConfigError(
            f"the {len(chosen)} modules to swap need {total} bytes for weights and optimizer "
            f"state, but {sizes}, and there is no SSD tier; raise {' or '.join(given)}, or add an "
            "ssd tier"
        )
    out = [tiers] * len(chosen)
    for name, size in given.items():
        shares = fair_shares(wanted, size)
        for i, (found, share, bound) in enumerate(zip(chosen, shares, least, strict=True)):
            if share < bound and wanted[i] > 0:
                raise ConfigError(
                    f"module {found.paths[0]!r} needs at least {bound} bytes of {name} and would "
                    f"get {share}, because {len(chosen)} modules share {name}={size}; raise "
                    f"{name}, or raise min_bytes to swap fewer modules"
                )
            # A module that the tier above holds entirely gets None of this one.
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


def _make_collection(found: Candidate, options: EngineKeywords) -> TieredCollection:
    collection: Any = found.module
    pooled = isinstance(found.first, nn.EmbeddingBag)
    configs = collection.embedding_bag_configs() if pooled else collection.embedding_configs()
    features = {config.name: config.feature_names for config in configs}
    tables = []
    for name in found.tables:
        child: Any = found.tables[name]
        mine = features[name.removeprefix(f"{found.paths[0]}.")]
        mode: Mode = child.mode if pooled else "sum"
        tables.append(TableConfig(name, *found.shape(name), mine, mode, child.padding_idx))
    options["output_dtype"] = torch.float32  # as TorchRec's, whatever its tables are
    module: TieredCollection
    if pooled:
        module = TieredEmbeddingBagCollection(
            tables, is_weighted=collection.is_weighted(), **options
        )
        module.embedding_names = list(collection._embedding_names)
    else:
        module = TieredEmbeddingCollection(
            tables, need_indices=collection.need_indices(), **options
        )
        names = collection.embedding_names_by_table()
        module.embedding_names = [name for mine in names for name in mine]
    return module


def _refuse_stored_rows(module: TieredModule) -> None:
    """Raises ConfigError if the module's store has rows of its tables, from an earlier run.

    They may be trained, so the model's weights must not replace them without a word.
    """
    for pool in module.engine.pools:
        if pool.store is None:
            continue
        for name, _ in pool.layout.tables:
            if any(True for _ in pool.store.scan(*table_range(name), chunk_rows=1)):
                ssd = str(module.engine.options.tiers.ssd)
                raise ConfigError(
                    f"'{ssd}' holds rows of table {name!r} already, and te.swap would replace them "
                    "by the weights of the model. To start anew, remove them with "
                    f"te.drop_table({ssd!r}, {name!r}), or pass another ssd directory. To go on "
                    "with trained rows, swap into another directory and restore them with "
                    "te.checkpoint.load(model, path)"
                )


def _fill(module: TieredModule, found: Candidate, old: set[Path]) -> None:
    """Copies the weights. ``old``: the stores that were there before.

    An import is faster than writing rows, and needs a new store: the largest table of each pool is
    imported, and the others follow.
    """
    wiring = module.engine.wiring
    pools = {
        table.name: pool for table, (pool, _) in zip(wiring.tables, wiring.places, strict=True)
    }
    stores = [pool.store for pool in module.engine.pools]
    new = [store is not None and store.path.resolve() not in old for store in stores]
    for name in sorted(found.tables, key=lambda name: -found.shape(name)[0]):
        table: Any = found.tables[name]
        weight: torch.Tensor = table.weight.detach()
        chunks = _chunks(weight)
        if new[pools[name]]:
            new[pools[name]] = False
            module.import_rows(chunks, table=name)
        else:
            for ids, part in chunks:
                module.load_rows(ids, part, table=name)


def _chunks(weight: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    block = max(1, COPY_BYTES // (4 * weight.shape[1]))
    for start in range(0, len(weight), block):
        part = weight[start : start + block]
        yield torch.arange(start, start + len(part), device="cpu"), part


def _carry(old: nn.Module, new: TieredModule) -> None:
    new.train(old.training)
    for kind in CARRIED_HOOKS:
        # The dict itself, not a copy: handles that users hold remove from it.
        setattr(new, kind, getattr(old, kind))


def _stores(tiers: Tiers) -> set[Path]:
    """What the SSD tier's directory holds now, stores among it."""
    return set() if tiers.ssd is None else {path.resolve() for path in tiers.ssd.glob("*")}


def _discard(made: Sequence[TieredModule], old: set[Path]) -> None:
    """Closes the modules, and removes the stores that they created."""
    for module in made:
        with suppress(TieredEmbedError):
            module.close()
        for pool in module.engine.pools:
            if pool.store is not None and pool.store.path.resolve() not in old:
                shutil.rmtree(pool.store.path, ignore_errors=True)

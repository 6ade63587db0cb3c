"""What a checkpoint sees of a model: its tiered modules, their pools, and a manifest entry of each.

Threading: the thread that trains the model.
"""

from __future__ import annotations

from itertools import repeat

from pydantic import ValidationError
from torch import nn

from ..engine import Pool
from ..errors import ConfigError
from ..modules import TieredModule
from ..store import WHOLE
from .manifest import Layout, PoolEntry

__all__ = ["pool_entry", "pools_of", "tiered_modules"]


def tiered_modules(model: nn.Module) -> list[tuple[str, TieredModule]]:
    """(name, module) of the tiered modules inside ``model``, each once.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model is a {type(model).__name__}; pass an nn.Module")
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, TieredModule)]
    if not found:
        raise ConfigError("the model has no tiered module, so there are no rows to save or restore")
    return found


def pools_of(model: nn.Module) -> list[tuple[str, TieredModule, Pool]]:
    """(module's name, module, pool), in the order of the model."""
    return [(n, m, pool) for n, m in tiered_modules(model) for pool in m.engine.pools]


def pool_entry(module: str, pool: Pool, folder: str, steps: int) -> PoolEntry:
    """The entry of a pool in a manifest.

    Raises:
        ConfigError: a manifest cannot hold it, such as a name of more than 65,536 characters.
    """
    layout = pool.layout
    sizes = dict(layout.tables)
    padding = dict(zip(sizes, layout.padding or repeat(None), strict=False))
    described = layout.describe()
    try:
        return PoolEntry(
            folder=folder,
            module=module,
            layout=Layout.model_validate(described),
            rows=[sizes[name] for name in described["tables"]],
            padding=[padding[name] for name in described["tables"]],
            shards=[WHOLE] * len(sizes),
            record_bytes=layout.record_bytes,
            steps=steps,
        )
    except ValidationError as error:
        raise ConfigError(f"a manifest cannot describe module {module[:99]!r}: {error}") from error

"""Whether rows may train where ``torch.distributed`` has several ranks. Threading: any thread."""

from __future__ import annotations

from torch import distributed

from ..engine import Engine
from ..errors import ConfigError

__all__ = ["refuse_unshared_ranks"]


def refuse_unshared_ranks(engine: Engine) -> None:
    """Raises ConfigError if other ranks would train other rows of the same tables unasked."""
    if engine.options.rank_local or engine.updates is None:
        return
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    ranks = distributed.get_world_size()
    if ranks > 1:
        raise ConfigError(
            f"torch.distributed has {ranks} ranks, and each would train its own rows of the tables "
            f"{[table.name for table in engine.tables][:8]}: rows are no parameters, so neither "
            "DistributedDataParallel nor FSDP averages their gradients, and sharded tables do not "
            "exist yet. Train on one rank, or pass rank_local=True if every rank is meant to have "
            "rows of its own"
        )

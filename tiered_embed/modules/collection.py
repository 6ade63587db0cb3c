"""Many tables and features in one module, as TorchRec's ``EmbeddingBagCollection``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..engine import Batch, FeatureBatch, feature_batch
from ..errors import ConfigError
from ..optim import Optimizer
from ..spec import EngineOptions, Init, TableConfig, Tiers, Uniform
from .base import TieredModule
from .eager import eager

__all__ = ["TieredEmbeddingBagCollection", "is_keyed_jagged"]


def is_keyed_jagged(value: object) -> bool:
    """Whether this is TorchRec's KeyedJaggedTensor; told by shape, TorchRec may be absent."""
    return all(hasattr(value, a) for a in ("keys", "values", "offsets", "offset_per_key"))


def _deduplicated(value: Any) -> bool:
    inverse = getattr(value, "inverse_indices_or_none", lambda: None)()
    return inverse is not None or bool(getattr(value, "variable_stride_per_key", lambda: False)())


class TieredEmbeddingBagCollection(TieredModule):
    """Pooled embeddings of several features; tables may be shared and differ in dim.

    Args:
        tables: ``te.TableConfig`` each; a table serves all its ``feature_names``, and a feature may
            read several tables: its outputs are then called ``feature@table``.
        is_weighted: True needs weights, False leaves given ones out, None takes what is given.

    Other arguments as in :class:`TieredEmbeddingBag`. Tables of one dim share the DDR slots.

    Raises:
        ConfigError: also for two tables of one name.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        tiers: Tiers,
        optimizer: Optimizer | None,
        seed: int = 0,
        init: Init = Uniform(-0.01, 0.01),  # noqa: B008
        dtype: torch.dtype = torch.float32,
        output_dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        policy: str = "lookahead",
        lookahead: int = 32,
        depth: int | str = 2,
        num_threads: int | None = None,
        bounds_check: str = "raise",
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        on_nonfinite: str = "raise",
        device: torch.device | str | None = None,
        kernel: str = "auto",
        is_weighted: bool | None = None,
    ) -> None:
        if not isinstance(tables, (list, tuple)) or not tables:
            raise ConfigError("a collection needs a list of at least one table")
        for table in tables:
            if not isinstance(table, TableConfig):
                raise ConfigError(f"tables has a {type(table).__name__}; pass te.TableConfig")
        if scale_grad_by_freq and any(table.mode == "max" for table in tables):
            raise ConfigError("scale_grad_by_freq has no meaning with mode='max'")
        names = [table.name for table in tables]
        features = [(name, t) for t, table in enumerate(tables) for name in table.feature_names]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(f"table {repeated[0]!r} is configured twice; names are unique")
        options = EngineOptions(
            tiers,
            optimizer,
            init,
            seed,
            dtype,
            output_dtype,
            rounding,
            policy,
            lookahead,
            depth,
            num_threads,
            bounds_check,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            on_nonfinite,
            device,
            kernel,
        )
        super().__init__(list(tables), features, options)
        self._is_weighted = is_weighted
        readers = Counter(name for name, _ in features)
        # What the outputs are called, in their order.
        self.embedding_names = [
            f"{name}@{tables[t].name}" if readers[name] > 1 else name for name, t in features
        ]

    def prepare(self, value: Any) -> Batch:
        if isinstance(value, Mapping):
            return self.engine.batch(self._from_mapping(value))
        if is_keyed_jagged(value):
            return self.engine.batch(self._from_keyed_jagged(value))
        raise ConfigError(
            f"input is a {type(value).__name__}; pass a KeyedJaggedTensor or "
            "{feature: (ids, offsets)}"
        )

    def _check_features(self, given: Sequence[str], *, others: bool) -> None:
        wanted = [name for name, _ in self.engine.features]
        missing = sorted(set(wanted) - set(given))
        unknown = [] if others else sorted(set(given) - set(wanted))
        if missing or unknown:
            raise ConfigError(f"features missing: {missing}, unknown: {unknown}; wanted {wanted}")

    def _from_mapping(self, value: Mapping[str, Any]) -> list[FeatureBatch]:
        self._check_features(list(value), others=False)
        out = []
        for name, _ in self.engine.features:
            args = value[name] if isinstance(value[name], tuple) else (value[name],)
            indices, offsets, weights = (*args, None, None, None)[:3]
            weights = self._sample_weights(name, weights)
            out.append(feature_batch(f"feature {name!r}", indices, offsets, weights))
        return out

    def _sample_weights(self, feature: str, given: Any) -> Any:
        if self._is_weighted and given is None:
            raise ConfigError(
                f"feature {feature!r} has no weights, but is_weighted=True needs them"
            )
        return None if self._is_weighted is False else given

    def _from_keyed_jagged(self, value: Any) -> list[FeatureBatch]:
        keys = list(value.keys())
        # One KeyedJaggedTensor may serve several collections.
        self._check_features(keys, others=True)
        if _deduplicated(value):
            raise ConfigError(
                "the KeyedJaggedTensor has a batch size per key (stride_per_key, inverse_indices); "
                "pass one with the same number of bags for every key"
            )
        starts = list(value.offset_per_key())
        values, offsets = value.values(), value.offsets()
        if values.is_cuda:
            values, offsets = values.cpu(), offsets.cpu()  # once, not per feature
        num_bags = (len(offsets) - 1) // max(len(keys), 1)
        weights = value.weights_or_none()
        out = []
        for name, _ in self.engine.features:
            k = keys.index(name)
            part = slice(starts[k], starts[k + 1])
            bounds = offsets[k * num_bags : (k + 1) * num_bags + 1] - starts[k]
            out.append(
                feature_batch(
                    f"feature {name!r}",
                    values[part],
                    bounds,
                    self._sample_weights(name, None if weights is None else weights[part]),
                    include_last_offset=True,
                )
            )
        return out

    @eager
    def forward(self, value: Any) -> Any:
        """Pooled rows of every feature.

        Args:
            value: a KeyedJaggedTensor, or {feature: (ids (N,), offsets (B,)[, weights (N,)])} or
                {feature: ids (B, n)}.

        Returns:
            A KeyedTensor for a KeyedJaggedTensor, else {name: (B, D)}; in the tables' order, with
            the names of ``embedding_names``.

        Raises:
            ConfigError, IdRangeError: bad arguments; nothing has changed.
        """
        out = self._forward(self.prepare(value))
        names, widths = self.embedding_names, self.engine.widths
        if isinstance(value, Mapping):
            return dict(zip(names, torch.split(out, widths, dim=1), strict=True))
        from torchrec.sparse.jagged_tensor import KeyedTensor  # only its users have it

        return KeyedTensor(keys=names, length_per_key=widths, values=out)

"""Many tables and features in one module, like TorchRec's ``EmbeddingBagCollection``.

Threading: as all tiered modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import Unpack

from ..engine import Feature, Presented, feature_of
from ..errors import ConfigError
from ..spec import EngineKeywords, TableConfig, options_from_keywords
from .arguments import BAG_ARGUMENTS, arguments
from .base import TieredModule
from .eager import eager

__all__ = ["TieredEmbeddingBagCollection", "is_keyed_jagged"]


def is_keyed_jagged(value: object) -> bool:
    """Whether this is TorchRec's KeyedJaggedTensor.

    Its attributes decide, because TorchRec may not be installed.
    """
    return all(hasattr(value, a) for a in ("keys", "values", "offsets", "offset_per_key"))


def _deduplicated(value: Any) -> bool:
    inverse = getattr(value, "inverse_indices_or_none", lambda: None)()
    return inverse is not None or bool(getattr(value, "variable_stride_per_key", lambda: False)())


class TieredEmbeddingBagCollection(TieredModule):
    """Pooled embeddings of several features; tables may be shared and differ in dim.

    Tables with the same dim and options share the slots of a tier.

    Args:
        tables: one ``te.TableConfig`` each. A table serves all its ``feature_names``. A feature may
            read several tables; its outputs are then called ``feature@table``.
        is_weighted: True requires weights, False ignores them, None uses them where they are given.
        options: the fields of ``te.EngineOptions``; ``tiers`` and ``optimizer`` are required.

    Raises:
        ConfigError: arguments that cannot work, two tables with the same name, or a store with
            another record layout.
        StoreError: a store directory that is unwritable or open elsewhere.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        is_weighted: bool | None = None,
        **options: Unpack[EngineKeywords],
    ) -> None:
        if not isinstance(tables, (list, tuple)) or not tables:
            raise ConfigError(
                "a collection needs at least one table; pass a list of te.TableConfig"
            )
        for table in tables:
            if not isinstance(table, TableConfig):
                raise ConfigError(
                    f"tables contains a {type(table).__name__}; every table must be a "
                    "te.TableConfig"
                )
        checked = options_from_keywords(type(self).__name__, options)
        if checked.scale_grad_by_freq and any(table.mode == "max" for table in tables):
            raise ConfigError(
                "scale_grad_by_freq has no meaning with mode='max'; choose mode='sum' or 'mean' "
                "for every table, or leave it out"
            )
        names = [table.name for table in tables]
        features = [(name, t) for t, table in enumerate(tables) for name in table.feature_names]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(
                f"table {repeated[0]!r} is configured twice; give every table a name of its own"
            )
        super().__init__(list(tables), features, checked)
        self._is_weighted = is_weighted
        readers = Counter(name for name, _ in features)
        # The names of the outputs, in their order.
        self.embedding_names = [
            f"{name}@{tables[t].name}" if readers[name] > 1 else name for name, t in features
        ]

    def present(self, value: Any) -> Presented:
        if isinstance(value, Mapping):
            self._check_features(list(value), others=False)
            tensors: list[Any] = []
            for name, _ in self.engine.wiring.features:
                tensors.extend(arguments(f"feature {name!r}", value[name], BAG_ARGUMENTS))
            return Presented(tuple(tensors))
        if not is_keyed_jagged(value):
            raise ConfigError(
                f"input is a {type(value).__name__}; pass a KeyedJaggedTensor or "
                "{feature: (ids, offsets)}"
            )
        keys = tuple(value.keys())
        # One KeyedJaggedTensor may serve several collections.
        self._check_features(keys, others=True)
        if _deduplicated(value):
            raise ConfigError(
                "the KeyedJaggedTensor has a batch size per key (stride_per_key, inverse_indices); "
                "pass one with the same number of bags for every key"
            )
        starts = tuple(value.offset_per_key())
        weights = value.weights_or_none()
        return Presented((value.values(), value.offsets(), weights), (keys, starts))

    def features(self, presented: Presented) -> list[Feature]:
        if presented.form is not None:
            return self._of_keyed_jagged(presented)
        out = []
        for f, (name, _) in enumerate(self.engine.wiring.features):
            ids, offsets, weights = presented.tensors[3 * f : 3 * f + 3]
            weights = self._sample_weights(name, weights)
            out.append(feature_of(f"feature {name!r}", ids, offsets, weights))
        return out

    def _of_keyed_jagged(self, presented: Presented) -> list[Feature]:
        form: Any = presented.form
        keys, starts = form
        values, offsets, weights = presented.tensors
        assert values is not None
        assert offsets is not None
        if values.is_cuda:
            values, offsets = values.cpu(), offsets.cpu()  # once, not per feature
        num_bags = (len(offsets) - 1) // max(len(keys), 1)
        out = []
        for name, _ in self.engine.wiring.features:
            k = keys.index(name)
            part = slice(starts[k], starts[k + 1])
            bounds = offsets[k * num_bags : (k + 1) * num_bags + 1] - starts[k]
            given = self._sample_weights(name, None if weights is None else weights[part])
            where = f"feature {name!r}"
            out.append(feature_of(where, values[part], bounds, given, include_last_offset=True))
        return out

    def _check_features(self, given: Sequence[str], *, others: bool) -> None:
        wanted = [name for name, _ in self.engine.wiring.features]
        missing = sorted(set(wanted) - set(given))
        unknown = [] if others else sorted(set(given) - set(wanted))
        if missing or unknown:
            raise ConfigError(
                f"features missing: {missing}, unknown: {unknown}; pass exactly {wanted}"
                if not others
                else f"features missing: {missing}; pass at least {wanted}"
            )

    def _sample_weights(self, feature: str, given: Any) -> Any:
        if self._is_weighted and given is None:
            raise ConfigError(
                f"feature {feature!r} has no weights, but is_weighted=True requires them; pass "
                "weights, or make the collection with is_weighted=None"
            )
        return None if self._is_weighted is False else given

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
        out, _ = self._forward(self.present(value))
        names, widths = self.embedding_names, list(self.engine.wiring.widths)
        if isinstance(value, Mapping):
            return dict(zip(names, torch.split(out, widths, dim=1), strict=True))
        from torchrec.sparse.jagged_tensor import KeyedTensor  # the caller has TorchRec

        return KeyedTensor(keys=names, length_per_key=widths, values=out)

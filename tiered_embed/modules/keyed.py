"""What a collection gets: the features of a batch by name, in a KeyedJaggedTensor of TorchRec's or
in a mapping.

Threading: as all tiered modules.

Legend: ``N`` ids of a feature, ``B`` bags, ``K`` keys of a KeyedJaggedTensor.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from ..engine import Feature, JaggedLayout, Presented
from ..errors import ConfigError
from ..spec import EngineKeywords, EngineOptions, TableConfig, options_from_keywords
from .arguments import BAG_ARGUMENTS, arguments
from .base import TieredModule
from .inverse import inverse_indices

__all__ = [
    "Even",
    "Keyed",
    "TieredCollection",
    "is_even",
    "is_keyed_jagged",
    "without_tensordict",
]


def is_keyed_jagged(value: object) -> bool:
    """Whether this is TorchRec's KeyedJaggedTensor.

    Its attributes decide, because TorchRec may not be installed.
    """
    return all(hasattr(value, a) for a in ("keys", "values", "offsets", "offset_per_key"))


def is_even(value: Any) -> bool:
    """Whether all keys of a KeyedJaggedTensor have the same number of bags, and no bag serves
    several samples."""
    uneven = getattr(value, "variable_stride_per_key", lambda: False)()
    return not uneven and inverse_indices(value) is None


def without_tensordict(value: Any) -> Any:
    """A TensorDict of jagged tensors as the KeyedJaggedTensor that TorchRec makes of it, one of
    dense tensors as a mapping; anything else as it is."""
    module = sys.modules.get("tensordict")
    if module is None or not isinstance(value, module.TensorDict):
        return value
    parts = dict(value.items())
    if not parts or not all(getattr(part, "is_nested", False) for part in parts.values()):
        return parts
    from torchrec.sparse.tensor_dict import maybe_td_to_kjt  # as TorchRec's own modules

    return maybe_td_to_kjt(value)


@dataclass(frozen=True)
class Keyed:
    """Where the parts of a KeyedJaggedTensor are.

    keys: (K,). starts: (K + 1,), of each key's ids, and the end. strides: (K,), bags of each key.
    stride: bags of a key that is missing.
    """

    keys: tuple[str, ...]
    starts: tuple[int, ...]
    strides: tuple[int, ...]
    stride: int

    @classmethod
    def of(cls, value: Any) -> Keyed:
        """Raises ConfigError: the parts do not fit together."""
        keys, starts = tuple(value.keys()), tuple(value.offset_per_key())
        num_ids, num_offsets = len(value.values()), len(value.offsets())
        if getattr(value, "variable_stride_per_key", lambda: False)():
            strides = tuple(value.stride_per_key())
        else:
            strides = ((num_offsets - 1) // max(len(keys), 1),) * len(keys)
        repeated = [key for key, count in Counter(keys).items() if count > 1]
        if repeated:
            raise ConfigError(
                f"the KeyedJaggedTensor has the key {repeated[0]!r} more than once; pass a key for "
                "each feature"
            )
        if keys and sum(strides) != num_offsets - 1:
            raise ConfigError(
                f"the KeyedJaggedTensor has {num_offsets - 1} bags, but its {len(keys)} keys have "
                f"batch sizes {list(strides)}; pass as many lengths as there are bags"
            )
        ordered = all(a <= b for a, b in pairwise((0, *starts)))
        if len(starts) != len(keys) + 1 or not ordered or starts[-1] != num_ids:
            raise ConfigError(
                f"the KeyedJaggedTensor has {num_ids} ids, but its {len(keys)} keys divide them at "
                f"{list(starts)}; pass lengths that add up to the ids"
            )
        stride = value.stride() if hasattr(value, "stride") else max(strides, default=0)
        return cls(keys, starts, strides, stride)

    @cached_property
    def index(self) -> dict[str, int]:
        """Of each key."""
        return {key: k for k, key in enumerate(self.keys)}

    @cached_property
    def first_bags(self) -> tuple[int, ...]:
        """(K + 1,): of each key, and the end."""
        return (0, *accumulate(self.strides))

    def ids(self, key: str) -> slice:
        """Where the ids of ``key`` are."""
        k = self.index[key]
        return slice(self.starts[k], self.starts[k + 1])

    def bags(self, key: str) -> slice:
        """Where the lengths of ``key`` are."""
        k = self.index[key]
        return slice(self.first_bags[k], self.first_bags[k + 1])


@dataclass(frozen=True)
class Even:
    """A KeyedJaggedTensor whose keys all have the same number of bags, and each sample its own.

    keys: (K,), which this collection has seen before. layout: which of them its features read.
    """

    keys: tuple[str, ...]
    layout: JaggedLayout = field(compare=False)
    value: Any = field(compare=False)


class TieredCollection(TieredModule):
    """Several tables, and the features that read them; use one of its subclasses."""

    # How a batch may be given as a mapping, for messages.
    _mapping = "{feature: ids}"

    def __init__(
        self,
        tables: Sequence[TableConfig],
        options: EngineKeywords,
        *,
        pooled: bool,
        missing_features: str,
    ) -> None:
        if missing_features not in ("raise", "empty"):
            raise ConfigError(
                f"missing_features is {missing_features!r}; choose one of raise, empty"
            )
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
        self._check_tables(tables, checked)
        counts = Counter(table.name for table in tables)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        if repeated:
            raise ConfigError(
                f"table {repeated[0]!r} is configured twice; give every table a name of its own"
            )
        features = [(name, t) for t, table in enumerate(tables) for name in table.feature_names]
        super().__init__(list(tables), features, checked, pooled=pooled)
        self._takes_missing = missing_features == "empty"
        readers = Counter(name for name, _ in features)
        # The names of the outputs, in their order.
        self.embedding_names = [
            f"{name}@{tables[t].name}" if readers[name] > 1 else name for name, t in features
        ]

    def _check_tables(self, tables: Sequence[TableConfig], options: EngineOptions) -> None:
        """Raises ConfigError: tables that cannot be in one collection of this kind."""
        raise NotImplementedError

    def _feature(self, name: str, given: Sequence[Any], *, include_last_offset: bool) -> Feature:
        """One feature of its ids, offsets and weights."""
        raise NotImplementedError

    def _jagged(self, value: Any, keyed: Keyed) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What this kind of collection reads of a KeyedJaggedTensor beside the ids: its offsets
        and weights.

        Raises:
            ConfigError, IdRangeError: the rest of it does not fit.
        """
        raise NotImplementedError

    def present(self, value: Any) -> Presented:
        value = without_tensordict(value)
        if isinstance(value, Mapping):
            self._check_features(value, others=False)
            tensors: list[Any] = []
            for name, _ in self.engine.wiring.features:
                tensors.extend(arguments(f"feature {name!r}", value.get(name), BAG_ARGUMENTS))
            return Presented(tuple(tensors))
        if not is_keyed_jagged(value):
            raise ConfigError(
                f"input is a {type(value).__name__}; pass a KeyedJaggedTensor or {self._mapping}"
            )
        keyed = Keyed.of(value)
        # One KeyedJaggedTensor may serve several collections.
        self._check_features(keyed.index, others=True)
        return Presented((value.values(), *self._jagged(value, keyed)), keyed)

    def features(self, presented: Presented) -> list[Feature]:
        form = presented.form
        if isinstance(form, Even):
            form = Keyed.of(form.value)
        if isinstance(form, Keyed):
            return self._of_keyed_jagged(presented, form)
        found: list[Feature | None] = []
        for f, (name, _) in enumerate(self.engine.wiring.features):
            given = presented.tensors[3 * f : 3 * f + 3]
            if given[0] is None and self._takes_missing:
                found.append(None)
            else:
                found.append(self._feature(name, given, include_last_offset=False))
        sizes = [feature.num_bags for feature in found if feature is not None]
        if not sizes and self.engine.wiring.pooled:
            raise ConfigError(
                "no feature is given, so that the number of bags is unknown; pass at least one of "
                f"{[name for name, _ in self.engine.wiring.features]}"
            )
        return [self._without_ids(sizes[0] if sizes else 0) if f is None else f for f in found]

    def _without_ids(self, num_bags: int) -> Feature:
        """A feature that is missing."""
        bounds = np.zeros(num_bags + 1, np.int64) if self.engine.wiring.pooled else None
        return Feature(np.empty(0, np.int64), bounds, None)

    def _of_keyed_jagged(self, presented: Presented, keyed: Keyed) -> list[Feature]:
        values, offsets, weights = presented.tensors
        assert values is not None
        if values.is_cuda:  # once, not per feature
            values = values.cpu()
            offsets = None if offsets is None else offsets.cpu()
        out = []
        names = [name for name, _ in self.engine.wiring.features]
        # The keys may have different batch sizes: all get as many bags as the largest.
        sizes = [keyed.strides[keyed.index[name]] for name in names if name in keyed.index]
        num_bags = max(sizes, default=keyed.stride)
        for name in names:
            if name not in keyed.index:
                out.append(self._without_ids(num_bags))
                continue
            ids, bags = keyed.ids(name), keyed.bags(name)
            bounds = None
            if offsets is not None:
                bounds = offsets[bags.start : bags.stop + 1] - ids.start
            part = None if weights is None else weights[ids]
            given = (values[ids], bounds, part)
            out.append(_padded(self._feature(name, given, include_last_offset=True), num_bags))
        return out

    def _check_features(self, given: Collection[str], *, others: bool) -> None:
        wanted = [name for name, _ in self.engine.wiring.features]
        missing = [] if self._takes_missing else sorted(set(wanted) - set(given))
        unknown = [] if others else sorted(set(given) - set(wanted))
        if missing or unknown:
            empty = ", or make the collection with missing_features='empty'" if missing else ""
            raise ConfigError(
                f"features missing: {missing}, unknown: {unknown}; pass exactly {wanted}{empty}"
                if not others
                else f"features missing: {missing}; pass at least {wanted}{empty}"
            )


def _padded(feature: Feature, num_bags: int) -> Feature:
    """With bags without ids at the end, so that there are ``num_bags``."""
    bounds = feature.offsets
    if bounds is None or len(bounds) > num_bags:
        return feature
    more = np.full(num_bags + 1 - len(bounds), bounds[-1])
    return feature._replace(offsets=np.concatenate([bounds, more]))

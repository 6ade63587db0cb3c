"""FBGEMM's own module over the slots of an HBM tier: the only file that knows its shape.

FBGEMM's unit is a table with an optimizer (``SplitTableBatchedEmbeddingBagsCodegen``). Here the
table's rows are the tier's slots: the module computes on the tier's own tensors, and rows move
without its help. ``fbgemm.py`` says what a training step does with it.

Threading: one call at a time, inside :meth:`HbmTier.use`.

Legend: ``N`` occurrences, ``F`` features, ``B`` bags of each, ``D`` dim.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ..errors import ConfigError
from ..tiers import HbmTier

__all__ = ["ON_CPU", "OPTIMIZERS", "PRECISIONS", "SlotTable", "import_fbgemm"]

# Name of our native functor -> FBGEMM's optimizer, and our state arrays in FBGEMM's order.
OPTIMIZERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "SGD": ("EXACT_SGD", ()),
    "RowWiseAdagrad": ("EXACT_ROWWISE_ADAGRAD", ("sum",)),
    "Adagrad": ("EXACT_ADAGRAD", ("sum",)),
    "Adam": ("ADAM", ("exp_avg", "exp_avg_sq")),
    "PartialRowWiseAdam": ("PARTIAL_ROWWISE_ADAM", ("exp_avg", "exp_avg_sq")),
}
# FBGEMM also has LAMB, PARTIAL_ROWWISE_LAMB and LARS_SGD. They are left out because they divide by
# norms that may be zero, so a row without a gradient would become NaN.
ON_CPU = ("SGD", "RowWiseAdagrad", "Adagrad")  # those that FBGEMM has on the CPU
PRECISIONS = {"float32": "FP32", "float16": "FP16"}
_DETERMINISTIC = threading.RLock()  # held while we have torch's switch for determinism on


class SlotTable:
    """FBGEMM's module for ``num_features`` features of one table, whose rows are the slots."""

    def __init__(self, tier: HbmTier, num_features: int) -> None:
        configs, ops = import_fbgemm()
        layout, device = tier.layout, tier.moves.device
        optimizer = layout.optimizer
        on_cpu = device.type == "cpu"
        # Rows that are never trained need no optimizer, but FBGEMM requires one.
        name, state = OPTIMIZERS["SGD" if optimizer is None else optimizer.kernel]
        names = [name for name in ("eps", "beta1", "beta2") if hasattr(optimizer, name)]
        scalars = {name: getattr(optimizer, name) for name in names}
        if optimizer is not None:
            scalars["learning_rate"] = optimizer.lr
        self._tier = tier
        self._device = device
        self._trains = optimizer is not None
        self._suffix = "host" if on_cpu else "dev"
        self._module = ops.SplitTableBatchedEmbeddingBagsCodegen(
            [
                (
                    4,  # rows of its own; the tier's tensors replace them
                    layout.dim,
                    ops.EmbeddingLocation.HOST if on_cpu else ops.EmbeddingLocation.DEVICE,
                    ops.ComputeDevice.CPU if on_cpu else ops.ComputeDevice.CUDA,
                )
            ],
            feature_table_map=[0] * num_features,
            weights_precision=getattr(configs.SparseType, PRECISIONS[layout.dtype]),
            output_dtype=configs.SparseType.FP32,
            optimizer=getattr(configs.EmbOptimType, name),
            pooling_mode=ops.PoolingMode.SUM,
            bounds_check_mode=ops.BoundsCheckMode.NONE,
            stochastic_rounding=False,
            device=device,
            **scalars,
        )
        self._state = [tier.state[array] for array in state]
        self._num_slots = -1
        self._lr: float | None = None
        self._counts_steps = name in ("ADAM", "PARTIAL_ROWWISE_ADAM")

    def __call__(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor,
        weights: torch.Tensor | None,
        step: int,
        lr: float,
    ) -> torch.Tensor:
        """Pooled rows (B, F * D); :meth:`update` takes them for the update numbered ``step``."""
        self.point_at_tier()
        self._set_lr(lr)
        module = self._module
        if self._counts_steps:
            # One less, because a forward adds one.
            module.iter.fill_(step - 1)
            module.iter_cpu.fill_(step - 1)
        with (
            torch.inference_mode(False),  # FBGEMM's operator needs autograd
            torch.set_grad_enabled(self._trains),
            torch.autograd.graph.saved_tensors_hooks(_itself, _itself),
            torch.autocast(self._device.type, enabled=False),
        ):
            out: torch.Tensor = module(indices, offsets, weights)
        return out

    def update(self, looked_up: torch.Tensor, grad: torch.Tensor, lr: float) -> None:
        """Updates the rows of ``looked_up``, which was made with ``lr``, by its gradient."""
        self.point_at_tier()
        self._set_lr(lr)
        exact = _deterministic() if self._device.type == "cuda" else nullcontext()
        with exact, torch.autocast(self._device.type, enabled=False):
            torch.autograd.backward([looked_up], [grad.contiguous()])

    def _set_lr(self, lr: float) -> None:
        """Sets the learning rate for the forward, which keeps it, or the backward that follows."""
        if lr != self._lr:
            # By .data, which autograd does not see: a forward may have saved the tensor.
            self._module.learning_rate_tensor.data.fill_(lr)
            self._lr = lr

    def point_at_tier(self) -> None:
        """Makes FBGEMM compute on the tier's tensors, which may have grown.

        This reaches backwards of earlier forwards too, because autograd saved the parameters
        themselves.
        """
        tier, module = self._tier, self._module
        if tier.num_slots == self._num_slots:
            return
        getattr(module, f"weights_{self._suffix}").data = tier.weights.view(-1)
        for i, tensor in enumerate(self._state, start=1):
            getattr(module, f"momentum{i}_{self._suffix}").data = tensor.view(-1)
        # FBGEMM sorts by as many bits of an index as these say.
        sizes = [0] * (len(module.hash_size_cumsum) - 1) + [tier.num_slots]
        module.hash_size_cumsum = torch.tensor(sizes, device=self._device)
        module.total_hash_size = tier.num_slots
        module.total_hash_size_bits = tier.num_slots.bit_length()
        self._num_slots = tier.num_slots


def import_fbgemm() -> tuple[Any, Any]:
    """FBGEMM's configurations and its table-batched modules.

    Raises:
        ConfigError: FBGEMM cannot be imported.
    """
    with warnings.catch_warnings():
        # FBGEMM warns about operators that its public wheels lack.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from fbgemm_gpu import split_embedding_configs as configs
            from fbgemm_gpu import split_table_batched_embeddings_ops_training as ops
        except (ImportError, OSError) as error:
            raise ConfigError(
                f"FBGEMM is installed but cannot be imported: {error}; reinstall it to match "
                f"torch {torch.__version__}"
            ) from error
    return configs, ops


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    """Saves a tensor as it is, as a hook on saved tensors.

    A caller's hook could save a copy, or save nothing and compute the forward again later. The
    backward would then update that copy instead of the tier.
    """
    return tensor


@contextmanager
def _deterministic() -> Iterator[None]:
    """Makes FBGEMM sum a row's gradient in one block, in one order.

    torch's switch affects the whole process. Other threads get a warning at most, and a lock keeps
    two modules' backwards from switching it off for each other.
    """
    with _DETERMINISTIC:
        before = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)

"""What every engine and module takes: one documented object, checked once."""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import torch

from ..errors import ConfigError
from ..optim import Optimizer
from .init import Constant, Init, Uniform
from .row_formats import ROUNDINGS
from .tiers import Tiers

__all__ = [
    "BOUNDS_CHECKS",
    "DTYPES",
    "KERNELS",
    "MOST_DEPTH",
    "ON_NONFINITE",
    "UPDATES",
    "EngineKeywords",
    "EngineOptions",
    "option_help",
    "options_from_keywords",
]

BOUNDS_CHECKS = ("raise", "clamp", "ignore", "warning")
UPDATES = ("backward", "step")
ON_NONFINITE = ("raise", "skip", "allow")
KERNELS = ("auto", "native", "fbgemm", "triton")
MOST_DEPTH = 16  # that "auto" may choose

# Of the rows; the names are those of row_formats.py.
DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int8: "int8",
}
DEFAULT_INIT = Uniform(-0.01, 0.01)
OUTPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class EngineOptions:
    """The options of an engine, which every tiered module takes as keywords.

    Args:
        tiers: sizes and places of the tiers, ``te.Tiers``.
        optimizer: one of ``te.optim``. It updates every row of a batch once per backward pass, with
            the row's whole gradient. None: rows are only read.
        update: when rows are updated. ``"backward"``: by every backward pass, fused; what acts on
            gradients after it must be told to the module. ``"step"``: by the step of
            ``te.row_optimizer``; until then their gradient is that of a parameter, which torch's
            tools see.
        init: initial values of rows: ``te.init.Uniform`` or ``te.init.Constant``.
        seed: of initial values and of stochastic rounding, in [0, 2**64).
        dtype: of the rows: ``torch.float32``, ``float16``, ``bfloat16``, or ``int8`` with a scale
            and a bias per row, which is read-only. Optimizer state is always float32.
        output_dtype: of what a forward returns. None: the rows' dtype, float32 for int8, and for
            tables of different dtypes the one that torch promotes them to.
        rounding: how float16 and bfloat16 rows are rounded after an update: ``"nearest"``, or
            ``"stochastic"``, which depends on seed, table, row and step alone.
        policy: which row leaves a full tier: one of ``tiered_embed.residency.POLICIES``.
        lookahead: future batches that ``te.prefetch`` shows to the policy.
        depth: batches that ``te.prefetch`` stages ahead of the one that trains, at most
            ``lookahead``. ``"auto"`` finds the smallest number that hides I/O.
        num_threads: for kernels and copies. None: all that the process may use.
        bounds_check: what happens to an id outside its table: ``"raise"`` an IdRangeError,
            ``"clamp"`` it to the nearest row, or ``"ignore"`` it. ``"warning"`` looks up row 0
            instead and logs that once; the id -1 is left out, as a pruned row of FBGEMM's.
            ``stats().bounds`` counts such ids.
        max_norm: rows with a larger norm are scaled down to it when they are looked up, as in
            ``nn.EmbeddingBag``. Training changes the rows, evaluation scales copies. None: never.
        norm_type: the ``p`` of that norm.
        scale_grad_by_freq: a row's gradient is divided by the number of its occurrences.
        on_nonfinite: what an infinite or NaN row gradient does, before any row has changed:
            ``"raise"`` a NonFiniteError, ``"skip"`` the update, or ``"allow"`` it.
        device: where an HBM tier and the outputs lie. None: a CUDA device if there is an HBM tier,
            else the CPU. ``"cpu"`` runs the same three tiers in host memory.
        kernel: what looks rows up and updates them: ``"native"`` on the CPU, ``"fbgemm"`` or
            ``"triton"`` in an HBM tier. ``"auto"``: native without an HBM tier, else FBGEMM's, and
            Triton's for what FBGEMM lacks on CUDA. FBGEMM's kernels round in their own way: trained
            bytes are equal under one kernel, whatever the tiers.
        rank_local: over several ranks of ``torch.distributed``, every rank trains rows of its own,
            which no other rank sees. False: training there is refused, because
            ``DistributedDataParallel`` does not reach the rows.

    Raises:
        ConfigError: options that cannot work, alone or together.
    """

    tiers: Tiers
    optimizer: Optimizer | None
    update: str = "backward"
    init: Init = DEFAULT_INIT
    seed: int = 0
    dtype: torch.dtype = torch.float32
    output_dtype: torch.dtype | None = None
    rounding: str = "nearest"
    policy: str = "lookahead"
    lookahead: int = 32
    depth: int | str = 2
    num_threads: int | None = None
    bounds_check: str = "raise"
    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False
    on_nonfinite: str = "raise"
    device: torch.device | str | None = None
    kernel: str = "auto"
    rank_local: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.tiers, Tiers):
            raise ConfigError(f"tiers is {self.tiers!r}; pass te.Tiers(ddr=..., ssd=...)")
        if self.tiers.ddr is None and self.tiers.hbm is None:
            raise ConfigError("the topmost tier holds the rows in use: pass te.Tiers(ddr=...)")
        self._check_device()
        if self.optimizer is not None and not isinstance(self.optimizer, Optimizer):
            raise ConfigError(
                f"optimizer is {self.optimizer!r}; pass one of te.optim, or None for rows that "
                "are only read"
            )
        if not isinstance(self.init, (Uniform, Constant)):
            raise ConfigError(f"init is {self.init!r}; pass te.init.Uniform or te.init.Constant")
        self._check_dtypes()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed is {self.seed!r}; it must be an integer")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed is {self.seed}; it must be in [0, 2**64)")
        if not _is_count(self.lookahead):
            raise ConfigError(f"lookahead is {self.lookahead!r}; it must be an integer, 0 or more")
        automatic = isinstance(self.depth, str) and self.depth == "auto"
        if not automatic and not _is_count(self.depth):
            raise ConfigError(
                f"depth is {self.depth!r}; it must be an integer, 0 or more, or 'auto'"
            )
        if self.deepest > self.lookahead:
            raise ConfigError(
                f"depth is {self.depth} but lookahead is {self.lookahead}: only batches in the "
                "window can be staged; raise lookahead or lower depth"
            )
        threads = self.num_threads
        if threads is not None and (
            isinstance(threads, bool) or not isinstance(threads, int) or threads < 1
        ):
            raise ConfigError(f"num_threads is {threads!r}; it must be a positive integer or None")
        for name, choices in (
            ("update", UPDATES),
            ("bounds_check", BOUNDS_CHECKS),
            ("rounding", ROUNDINGS),
            ("on_nonfinite", ON_NONFINITE),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        if self.max_norm is not None and not (_is_number(self.max_norm) and self.max_norm >= 0):
            raise ConfigError(f"max_norm is {self.max_norm!r}; it must be a number of at least 0")
        if not (_is_number(self.norm_type) and self.norm_type > 0):
            raise ConfigError(f"norm_type is {self.norm_type!r}; it must be a number above 0")
        for name in ("scale_grad_by_freq", "rank_local"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; pass True or False")

    def _check_device(self) -> None:
        kind = self.compute_device.type
        if kind not in ("cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}; rows train on 'cpu' or 'cuda'")
        if kind == "cuda" and self.tiers.hbm is None:
            raise ConfigError(
                f"device is {self.device!r}, but the tiers have no HBM: pass te.Tiers(hbm=...)"
            )
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "an HBM tier needs a GPU that torch can use; pass device='cpu' to have it in host "
                "memory, or leave hbm out of te.Tiers"
            )
        if not isinstance(self.kernel, str) or self.kernel not in KERNELS:
            raise ConfigError(f"kernel is {self.kernel!r}; choose one of {', '.join(KERNELS)}")
        if self.kernel in ("fbgemm", "triton") and self.tiers.hbm is None:
            raise ConfigError(
                f"kernel={self.kernel!r} computes in the HBM tier: pass te.Tiers(hbm=...)"
            )
        if self.kernel == "native" and kind == "cuda":
            raise ConfigError("kernel='native' computes on the CPU; pass kernel='auto'")

    def _check_dtypes(self) -> None:
        if not isinstance(self.dtype, torch.dtype) or self.dtype not in DTYPES:
            raise ConfigError(
                f"dtype is {self.dtype}; rows are torch.float32, float16, bfloat16 or int8"
            )
        if self.output_dtype is not None and not (
            isinstance(self.output_dtype, torch.dtype) and self.output_dtype in OUTPUT_DTYPES
        ):
            raise ConfigError(
                f"output_dtype is {self.output_dtype}; it must be torch.float32, float16 or "
                "bfloat16"
            )
        if self.dtype != torch.int8:
            return
        if self.optimizer is not None:
            raise ConfigError("int8 rows are read-only: pass optimizer=None, or another dtype")
        if self.max_norm is not None:
            raise ConfigError("int8 rows are read-only: max_norm would change them")

    @property
    def deepest(self) -> int:
        """Batches that may be staged ahead."""
        return self.depth if isinstance(self.depth, int) else min(self.lookahead, MOST_DEPTH)

    @cached_property
    def compute_device(self) -> torch.device:
        """Where rows are looked up and updated, and where outputs lie."""
        try:
            given = "cpu" if self.tiers.hbm is None else "cuda"
            device = torch.device(given if self.device is None else self.device)
        except (RuntimeError, TypeError):
            raise ConfigError(f"device is {self.device!r}; pass 'cpu' or 'cuda'") from None
        if device.type == "cuda" and device.index is None and torch.cuda.is_available():
            # Of this thread; others have a current device of their own.
            return torch.device("cuda", torch.cuda.current_device())
        return device

    @cached_property
    def threads(self) -> int:
        return self.num_threads or len(os.sched_getaffinity(0))


class _RequiredKeywords(TypedDict):
    tiers: Tiers
    optimizer: Optimizer | None


class EngineKeywords(_RequiredKeywords, total=False):
    """The fields of :class:`EngineOptions` as typed keywords; a test compares the two."""

    update: str
    init: Init
    seed: int
    dtype: torch.dtype
    output_dtype: torch.dtype | None
    rounding: str
    policy: str
    lookahead: int
    depth: int | str
    num_threads: int | None
    bounds_check: str
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    on_nonfinite: str
    device: torch.device | str | None
    kernel: str
    rank_local: bool


def options_from_keywords(owner: str, keywords: EngineKeywords) -> EngineOptions:
    """The options that ``owner``'s constructor was given.

    Raises:
        TypeError: an unknown keyword, or a required one is missing, as Python has it.
        ConfigError: options that cannot work.
    """
    known = EngineOptions.__dataclass_fields__
    for name in keywords:
        if name not in known:
            raise TypeError(
                f"{owner}() got an unexpected keyword argument {name!r}; te.EngineOptions lists "
                "those that there are"
            )
    missing = [name for name in ("tiers", "optimizer") if name not in keywords]
    if missing:
        raise TypeError(f"{owner}() needs the keyword argument {' and '.join(missing)}")
    return EngineOptions(**keywords)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def option_help(name: str) -> str:
    """What ``EngineOptions`` documents of one of its fields, as one line for a command's help.

    Raises:
        KeyError: the field is not documented.
    """
    text = inspect.getdoc(EngineOptions) or ""
    entries = re.findall(r"^    ([a-z_, ]+): (.+(?:\n {5,}.+)*)", text, re.MULTILINE)
    if not entries:  # python -OO drops docstrings
        return ""
    found = {key: body for keys, body in entries for key in keys.split(", ")}
    line = " ".join(found[name].replace("``", "").replace('"', "").split())
    return line[0].upper() + line[1:]

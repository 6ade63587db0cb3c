"""Fused optimizers: their specs, and the plain definition of what each does to a row.

A spec is a frozen dataclass. ``update`` is its readable reference in NumPy: in float32 it gives the
very bits of the native kernels (same operations, same order, no fused multiply-add), in float64 it
is the truth that both are held against.

State lives beside the weights in one record, as float32, and moves with them. ``step`` counts the
backward passes of the module, from 1.
"""

from .adagrad import Adagrad, RowWiseAdagrad, RowWiseRMSProp
from .adam import LAMB, Adam, AdamW, PartialRowWiseAdam, PartialRowWiseLAMB
from .base import NORM_FLOOR, Optimizer, lane_sum, row_gradient
from .descent import FTRL, LARSSGD, SGD, MomentumSGD

__all__ = [
    "FTRL",
    "LAMB",
    "LARSSGD",
    "NORM_FLOOR",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "MomentumSGD",
    "Optimizer",
    "PartialRowWiseAdam",
    "PartialRowWiseLAMB",
    "RowWiseAdagrad",
    "RowWiseRMSProp",
    "lane_sum",
    "row_gradient",
]

"""Fused optimizers: their options, and the plain definition of what each does to a row.

An optimizer is a frozen dataclass. Its ``update`` is the readable reference in NumPy. In float32 it
gives the very bits of the native kernels (same operations, same order, no fused multiply-add). In
float64 it is the truth that tests compare both with. Training itself uses the kernels.

State is float32. It shares a record with the weights and moves with them. ``step`` counts the
module's backward passes, from 1.

Threading: plain data and pure functions.
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

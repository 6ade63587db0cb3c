"""A pytest plugin: every native worker thread of the process has another floating-point state.

They round up, flush subnormal numbers to zero, and every exception ends the process. A thread
inherits the state of the one that makes it, and nobody resets it.
"""

import ctypes

import numpy as np
import torch

from tiered_embed import _native

NUM_WORKERS = 7
FE_UPWARD, FE_ALL_EXCEPT, FE_DFL_ENV = 0x800, 0x3D, ctypes.c_void_p(-1)  # glibc's, on x86-64


def make_workers() -> None:
    """REQUIRES: the process has no native worker yet."""
    libm = ctypes.CDLL("libm.so.6")
    slots = np.zeros(256 * (NUM_WORKERS + 1), np.int32)
    records = _native.RecordArray(1, 1, 0, 0)
    out = np.empty((len(slots), 4), np.uint8)
    libm.feclearexcept(FE_ALL_EXCEPT)
    torch.set_flush_denormal(True)
    libm.fesetround(FE_UPWARD)
    libm.feenableexcept(FE_ALL_EXCEPT)
    try:
        records.gather(slots, out, NUM_WORKERS + 1)
    finally:
        libm.fesetenv(FE_DFL_ENV)
        torch.set_flush_denormal(False)


make_workers()

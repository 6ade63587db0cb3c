"""Lookup and fused update over slots: one interface (``base.py``) and three implementations.

``cpu.py`` calls the native kernels, ``fbgemm.py`` FBGEMM's, ``triton.py`` our Triton programs.
Kernels only compute; the planner decides which row lies in which slot.

Threading: one call at a time.
"""

from .base import HUGE_BYTES, POOLINGS, Bags, Kernel, LookedUp, UpdateOptions
from .choice import kernel_for
from .cpu import CpuKernel
from .device import DeviceKernel
from .fbgemm import FbgemmKernel
from .triton import TritonKernel

__all__ = [
    "HUGE_BYTES",
    "POOLINGS",
    "Bags",
    "CpuKernel",
    "DeviceKernel",
    "FbgemmKernel",
    "Kernel",
    "LookedUp",
    "TritonKernel",
    "UpdateOptions",
    "kernel_for",
]

"""Lookup and fused update over slots: one interface (``base.py``) and three implementations.

``cpu.py`` calls the native kernels, ``fbgemm.py`` FBGEMM's, ``triton.py`` our Triton programs.
Kernels only compute; which row lies in which slot is decided elsewhere.

Threading: one call at a time.
"""

from .base import Kernel
from .choice import kernel_for
from .cpu import POOLINGS, Bags, CpuKernel, UpdateOptions
from .device import DeviceKernel
from .fbgemm import FbgemmKernel
from .triton import TritonKernel

__all__ = [
    "POOLINGS",
    "Bags",
    "CpuKernel",
    "DeviceKernel",
    "FbgemmKernel",
    "Kernel",
    "TritonKernel",
    "UpdateOptions",
    "kernel_for",
]

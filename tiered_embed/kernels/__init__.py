"""Lookup and fused update over slots. One module per implementation, one interface."""

from .base import Kernel
from .cpu import POOLINGS, Bags, CpuKernel, UpdateOptions
from .device import DeviceKernel
from .fbgemm import FbgemmKernel
from .triton import TritonKernel

# What a module may be asked to compute with.
KERNELS = ("auto", "native", "fbgemm", "triton")

__all__ = [
    "KERNELS",
    "POOLINGS",
    "Bags",
    "CpuKernel",
    "DeviceKernel",
    "FbgemmKernel",
    "Kernel",
    "TritonKernel",
    "UpdateOptions",
]

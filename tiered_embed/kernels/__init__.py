"""Lookup and fused update over slots. One module per implementation, one interface."""

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

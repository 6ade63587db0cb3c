"""Lookup and fused update over slots. One module per implementation, one interface."""

from .base import Kernel
from .cpu import POOLINGS, Bags, CpuKernel, UpdateOptions
from .fbgemm import FbgemmKernel

# What a module may be asked to compute with.
KERNELS = ("auto", "native", "fbgemm")

__all__ = ["KERNELS", "POOLINGS", "Bags", "CpuKernel", "FbgemmKernel", "Kernel", "UpdateOptions"]

"""Lookup and fused update over slots. One module per implementation, one interface."""

from .cpu import POOLINGS, Bags, CpuKernel, UpdateOptions

__all__ = ["POOLINGS", "Bags", "CpuKernel", "UpdateOptions"]

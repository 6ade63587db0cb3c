"""Lookup and fused update over slots. One module per implementation, one interface."""

from .cpu import Bags, CpuKernel

__all__ = ["Bags", "CpuKernel"]

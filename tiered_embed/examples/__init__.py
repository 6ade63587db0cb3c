"""Runnable models: ``dlrm`` is the model, ``demo`` trains it through the tiers."""

from .dlrm import DLRM

__all__ = ["DLRM", "demo"]

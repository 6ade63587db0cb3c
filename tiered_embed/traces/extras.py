"""Imports libraries of the extra ``sim`` when they are first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import ConfigError

__all__ = ["require"]


def require(module: str, purpose: str) -> ModuleType:
    """Import ``module``; ``purpose`` ends the sentence "... is needed to".

    Raises:
        ConfigError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ConfigError(
            f"{name} is needed to {purpose} ({error}); pip install 'tiered_embed[sim]'"
        ) from error

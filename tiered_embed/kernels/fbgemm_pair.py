"""Checks that the installed torch and FBGEMM fit each other.

An FBGEMM wheel is built against one torch release, so the two come in pairs. Any thread may ask.
"""

from __future__ import annotations

from importlib import metadata

import torch

from ..errors import ConfigError

__all__ = ["require_fbgemm"]

# torch release -> the FBGEMM release built against it, as tested with this package.
PAIRS = {"2.13": "1.8", "2.11": "1.6"}
# By device. The first wheel of these that is installed is checked.
WHEELS = {"cpu": ("fbgemm-gpu-cpu", "fbgemm-gpu"), "cuda": ("fbgemm-gpu",)}


def require_fbgemm(device: str = "cpu") -> str:
    """Checks that FBGEMM is installed for ``device`` and fits torch; returns its version.

    Raises:
        ConfigError: FBGEMM is not installed for ``device``, or was not tested with this torch.
    """
    release = ".".join(torch.__version__.split(".")[:2])
    wanted = PAIRS.get(release)
    for wheel in WHEELS[device]:
        try:
            version = metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
        if wanted is None or not version.startswith(wanted + "."):
            pairs = ", ".join(f"torch {t} with {wheel} {f}" for t, f in PAIRS.items())
            raise ConfigError(
                f"torch {torch.__version__} and {wheel} {version} do not fit each other; install "
                f"a tested pair: {pairs}"
            )
        return version
    if device == "cuda":
        raise ConfigError("FBGEMM for CUDA is not installed; pip install 'tiered_embed[cuda]'")
    raise ConfigError(
        "FBGEMM is not installed; pip install 'tiered_embed[cpu]' or 'tiered_embed[cuda]'"
    )

"""The choice of kernels: instruction sets and the FBGEMM pair."""

from importlib import metadata

import pytest
import torch

import tiered_embed as te
from tiered_embed import _native
from tiered_embed.kernels.fbgemm_pair import require_fbgemm


def test_the_best_instruction_set_is_chosen() -> None:
    names = _native.available_isas()
    assert names[-1] == "baseline"
    assert _native.current_isa() == names[0]


def test_an_absent_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="neon9"):
        _native.select_isa("neon9")


def test_the_installed_pair_fits() -> None:
    assert require_fbgemm().startswith("1.")


def test_a_pair_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.1")
    with pytest.raises(
        te.ConfigError,
        match=r"torch 2\.12\.1 and fbgemm.* do not fit each other; install a tested pair",
    ):
        require_fbgemm()


def test_no_fbgemm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(te.ConfigError, match="not installed"):
        require_fbgemm()


def test_the_wheel_for_the_cpu_does_not_do_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def cpu_only(name: str) -> str:
        if name != "fbgemm-gpu-cpu":
            raise metadata.PackageNotFoundError(name)
        return "1.8.0"

    monkeypatch.setattr(metadata, "version", cpu_only)
    with pytest.raises(te.ConfigError, match=r"for CUDA is not installed; pip .*cuda"):
        require_fbgemm("cuda")

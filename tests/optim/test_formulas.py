"""Optimizers: the references in float64 against the papers.

``kernels/test_optimizers.py`` holds the kernels against the references, ``test_peers.py`` both
against torch and FBGEMM.
"""

import numpy as np
import pytest

import tiered_embed as te
from optimizers import CLIPS, DECAYS, SPECS, spec
from plain_optim import PlainTable
from tiered_embed import _native
from tiered_embed.optim.base import lane_sum, row_gradient


def test_lane_sum_order() -> None:
    x = np.random.default_rng(0).standard_normal((5, 37)).astype(np.float32)
    for row, got in zip(x, lane_sum(x), strict=True):
        lanes = [np.float32(0)] * 16
        for c, value in enumerate(row):
            lanes[c % 16] = np.float32(lanes[c % 16] + value)
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [np.float32(lanes[i] + lanes[i + half]) for i in range(half)]
        assert got == lanes[0]
    np.testing.assert_allclose(lane_sum(x.astype(np.float64)), x.astype(np.float64).sum(1))


def test_row_gradient_chunks() -> None:
    x = np.random.default_rng(1).standard_normal((700, 3)).astype(np.float32)
    parts = []
    for start in (0, 256, 512):
        part = np.zeros(3, np.float32)
        for row in x[start : start + 256]:
            part += row
        parts.append(part)
    np.testing.assert_array_equal(row_gradient(x), (parts[0] + parts[1]) + parts[2])
    np.testing.assert_array_equal(row_gradient(x[:0]), np.zeros(3, np.float32))


@pytest.mark.parametrize("by_frequency", [False, True], ids=["", "by_frequency"])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("name", SPECS)
def test_references_agree_with_the_papers(
    name: str, decay: str, clip: str, by_frequency: bool
) -> None:
    optimizer = spec(name, decay, clip)
    rng = np.random.default_rng(1)
    for dim in (1, 7, 21):
        weights = rng.standard_normal((6, dim))
        weights[5] = 0.0  # norms of zero
        plain = PlainTable(optimizer, weights)
        state = np.zeros((6, optimizer.state_floats(dim)))
        for step in range(1, 13):
            grad = rng.standard_normal((6, dim)) * 10.0 ** rng.uniform(-2, 1, (6, 1))
            grad[step % 6] = 0.0
            occurrences = rng.integers(1, 9, 6) if by_frequency else None
            scale = 0.125 if by_frequency else 1.0
            plain.step(grad, occurrences, scale)
            if by_frequency:
                grad = optimizer.conditioned(grad, occurrences=occurrences, scale=scale)
                grad = grad * optimizer.global_factor(float((grad**2).sum()))
                optimizer.apply(weights, state, grad, step)
            else:
                optimizer.update(weights, state, grad, step)
        np.testing.assert_allclose(weights, plain.weights, rtol=1e-10, atol=1e-12)
        ends = np.cumsum(list(optimizer.state_layout(dim).values()))
        for array, part in zip(optimizer.state_layout(dim), np.split(state, ends, 1), strict=False):
            np.testing.assert_allclose(part, plain.array(array), rtol=1e-10, atol=1e-12)


def test_every_optimizer_is_tested() -> None:
    public = (getattr(te.optim, n) for n in te.optim.__all__)
    classes = {value for value in public if isinstance(value, type)}
    assert {type(o) for o in SPECS.values()} == classes - {te.optim.Optimizer}
    assert {o.kernel for o in SPECS.values()} == set(_native.optimizer_names())


@pytest.mark.parametrize(
    "make",
    [
        lambda: te.optim.SGD(lr=-1.0),
        lambda: te.optim.SGD(lr=float("nan")),
        lambda: te.optim.SGD(lr="fast"),  # type: ignore[arg-type]
        lambda: te.optim.Adagrad(lr=0.1, eps=-1e-3),
        lambda: te.optim.Adam(lr=0.1, beta1=1.0),
    ],
)
def test_bad_hyperparameters(make) -> None:
    with pytest.raises(te.ConfigError):
        make()

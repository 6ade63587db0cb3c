"""Values that a caller might pass by mistake or on purpose, of every kind."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
]
SHAPES = [(), (0,), (1,), (3,), (8,), (2, 3), (0, 4), (4, 0), (2, 2, 2), (1, 1), (8, 4)]
NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 29, 30, 31, 100, 255, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63),
    *(-(2**31), -(2**63), 2**64 - 1, 2**64, 2**70, -(2**70)),
]
FLOATS = [
    0.0,
    -0.0,
    0.5,
    -1.5,
    1e-45,
    1e38,
    3.5e38,
    1e300,
    -1e300,
    *map(float, ["nan", "inf", "-inf"]),
]
STRINGS = [
    *("", "a", "table", "user", "sum", "mean", "8GiB", "-1KB", "1e9", "\0", "é💥", "../..", "nan"),
    *("x" * 3000, "raise", "step-1", "\ud800"),
]


class Values:
    """Draws values; the same for the same generator."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self._kinds: list[Callable[[], Any]] = [
            *[self.tensor] * 6,
            self.number,
            self.number,
            self.float,
            self.string,
            self.array,
            self.other,
            self.container,
        ]

    def any(self) -> Any:
        return self.draw.choice(self._kinds)()

    def number(self) -> int:
        return self.draw.choice(NUMBERS)

    def float(self) -> float:
        return self.draw.choice(FLOATS)

    def string(self) -> str:
        return self.draw.choice(STRINGS)

    def other(self) -> Any:
        return self.draw.choice(
            [
                *(None, True, False, object(), b"bytes", 1j, Path("x"), len, type, ...),
                *(np.int64(3), np.float32("nan"), torch.float32, range(3), iter([1])),
            ]
        )

    def container(self) -> Any:
        return self.draw.choice([[], (), {}, [1, 2], (1, "a"), {"user": 1}, {1: 2}, [None], {3}])

    def array(self) -> np.ndarray:
        return self.tensor_of(self.draw.choice(DTYPES[:7] + DTYPES[8:])).numpy().copy()

    def tensor(self) -> torch.Tensor:
        tensor = self.tensor_of(self.draw.choice(DTYPES))
        what = self.draw.random()
        if what < 0.06 and tensor.dim() == 2:
            return tensor.t()
        if what < 0.12 and tensor.dim() == 1:
            return tensor.repeat(2)[::2]
        if what < 0.16:
            return tensor.to("meta")
        if what < 0.2 and tensor.dim():
            return tensor.to_sparse()
        if what < 0.24:
            return tensor[None].expand(3, *tensor.shape)
        if what < 0.28 and tensor.dtype.is_floating_point:
            return tensor.requires_grad_()
        return tensor

    def tensor_of(self, dtype: torch.dtype) -> torch.Tensor:
        shape = self.draw.choice(SHAPES)
        size = int(np.prod(shape))
        if dtype.is_floating_point or dtype.is_complex:
            wild = self.draw.random() < 0.4
            floats = [self.float() if wild else self.draw.gauss(0, 1) for _ in range(size)]
            return torch.tensor(floats, dtype=torch.float64).to(dtype).reshape(shape)
        numbers = [self.draw.randrange(30) for _ in range(size)]
        if self.draw.random() < 0.5:
            numbers = [self.number() for _ in range(size)]
        wrapped = [(n + 2**63) % 2**64 - 2**63 for n in numbers]
        return torch.tensor(wrapped, dtype=torch.int64).to(dtype).reshape(shape)

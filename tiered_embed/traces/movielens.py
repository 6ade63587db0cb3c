"""MovieLens ratings as arrays.

Formats: https://files.grouplens.org/datasets/movielens/ml-latest-small-README.html, and, for
``ratings.dat``, whose fields are separated by ``::`` and which has no header,
https://files.grouplens.org/datasets/movielens/ml-1m-README.txt; data: Harper &
Konstan, "The MovieLens Datasets", ACM TiiS 5(4), 2015.
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .files import BOM, StrPath, read_blocks
from .table import read_table

__all__ = ["HEADER", "Ratings", "is_double_colon", "read_ratings"]

HEADER = ("userId", "movieId", "rating", "timestamp")


@dataclass(frozen=True)
class Ratings:
    """``N`` ratings in file order (by user, not by time).

    ``users``, ``movies`` and ``timestamps`` (seconds since 1970) are int64 (N,), ``ratings``
    float32 (N,) in stars.
    """

    users: npt.NDArray[np.int64]
    movies: npt.NDArray[np.int64]
    ratings: npt.NDArray[np.float32]
    timestamps: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)

    def tables(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return the id stream of each embedding table: ``user`` and ``movie``."""
        return {"user": self.users, "movie": self.movies}

    def by_time(self) -> "Ratings":
        """Return the ratings in order of time, ties in file order."""
        order = np.argsort(self.timestamps, kind="stable")
        return Ratings(
            self.users[order], self.movies[order], self.ratings[order], self.timestamps[order]
        )


def read_ratings(path: StrPath) -> Ratings:
    """Read ``ratings.csv`` or ``ratings.dat``, plain or compressed.

    Raises:
        ConfigError: a wrong header, field count or number (the message names the line), or damaged
            compression.
        OSError: the file cannot be read.
    """
    colons = is_double_colon(next(read_blocks(path), b""))
    table = read_table(path, b"::" if colons else b",", HEADER, has_header=not colons)
    blocks = [(block.integers(0, 2), block.decimals(2), block.integers(3, 4)) for block in table]
    ids = np.concatenate([np.empty((0, 2), dtype=np.int64), *(ids for ids, _, _ in blocks)])
    ratings = np.concatenate([np.empty(0), *(ratings for _, ratings, _ in blocks)])
    times = np.concatenate([np.empty((0, 1), dtype=np.int64), *(times for _, _, times in blocks)])
    return Ratings(
        np.ascontiguousarray(ids[:, 0]),
        np.ascontiguousarray(ids[:, 1]),
        ratings.astype(np.float32),
        times[:, 0],
    )


def is_double_colon(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a ``ratings.dat``."""
    line = start.removeprefix(BOM).partition(b"\n")[0].rstrip(b"\r")
    return re.fullmatch(rb"\d+::\d+::\d+(\.\d+)?::\d+", line) is not None

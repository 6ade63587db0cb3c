"""Location check-ins as a four-table id stream.

Data: Yang, Qu, Yang, Cudré-Mauroux, "Revisiting User Mobility and Social Relationships in LBSNs: A
Hypergraph Embedding Approach" (LBSN2Vec), WWW 2019.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .files import StrPath
from .table import read_table

__all__ = ["HEADER", "NUM_HOURS", "CheckIns", "read_checkins"]

NUM_HOURS = 168
HEADER = ("user", "hour_of_week", "venue", "category")


@dataclass(frozen=True)
class CheckIns:
    """``N`` check-ins in order of time: four int64 (N,), with ``hours`` in [1, 168]."""

    users: npt.NDArray[np.int64]
    hours: npt.NDArray[np.int64]
    venues: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)

    def tables(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return the id stream of each embedding table."""
        return {
            "user": self.users,
            "hour": self.hours,
            "venue": self.venues,
            "category": self.categories,
        }


def read_checkins(path: StrPath) -> CheckIns:
    """Read a check-in log (plain, gzip or xz): user, hour of week, venue, category.

    Raises:
        ConfigError: a wrong header, field count or number, or an hour outside the week (the message
            names the line); damaged compression.
        OSError: the file cannot be read.
    """
    blocks = [np.empty((0, len(HEADER)), dtype=np.int64)]
    for fields in read_table(path, b"\t", HEADER):
        block = fields.integers(0, len(HEADER))
        outside = (block[:, 1] < 1) | (block[:, 1] > NUM_HOURS)
        if outside.any():
            row = int(outside.argmax())
            raise fields.error(row, f"hour of week {block[row, 1]} is outside [1, {NUM_HOURS}]")
        blocks.append(block)
    columns = np.ascontiguousarray(np.concatenate(blocks).T)
    return CheckIns(columns[0], columns[1], columns[2], columns[3])

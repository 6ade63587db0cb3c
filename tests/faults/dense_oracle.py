"""All rows of one table in NumPy, trained by the plain definition of Adagrad; whole arrays at once.

Independent of the package but for the initial values. Bags have a fixed length, and no row has more
than 256 occurrences in a batch: within one chunk, a row's gradient is a plain sum.
"""

import hashlib

import numpy as np

import tiered_embed as te

F32 = np.float32
CHUNK = 256


class DenseOracle:
    """``num_rows`` rows of ``dim`` weights and as many state floats."""

    def __init__(self, name: str, num_rows: int, dim: int, *, lr: float, eps: float, init, seed):
        self._prefix = hashlib.sha256(name.encode()).digest()[:4]
        self._lr, self._eps = F32(lr), F32(eps)
        rows = np.arange(num_rows, dtype=np.int64)
        self.weights = te.init.reference(init, seed, name, rows, dim)
        self.state = np.zeros((num_rows, dim), F32)
        self.materialised = np.zeros(num_rows, np.bool_)

    def forward(self, ids: np.ndarray) -> np.ndarray:
        """(B, L) ids -> (B, D): added from zero in order."""
        out = np.zeros((len(ids), self.weights.shape[1]), F32)
        for column in ids.T:
            out += self.weights[column]
        return out

    def backward(self, ids: np.ndarray, grad: np.ndarray) -> int:
        """One step; returns how many rows it updated."""
        rows, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
        assert counts.max() <= CHUNK, "the oracle sums one chunk; draw ids less skewed"
        sums = np.zeros((len(rows), grad.shape[1]), F32)
        np.add.at(sums, inverse.reshape(-1), np.repeat(grad, ids.shape[1], axis=0))
        state = self.state[rows] + sums * sums
        self.state[rows] = state
        self.weights[rows] -= (self._lr * sums) / (np.sqrt(state) + self._eps)
        self.materialised[rows] = True
        return len(rows)

    def write(self, rows: np.ndarray, weights: np.ndarray) -> None:
        """As ``load_rows`` without state."""
        self.weights[rows], self.state[rows], self.materialised[rows] = weights, 0, True

    def digest(self) -> str:
        rows = np.flatnonzero(self.materialised).astype(np.int64)
        keys = np.empty((len(rows), 12), np.uint8)
        keys[:, :4] = np.frombuffer(self._prefix, np.uint8)
        keys[:, 4:] = rows.astype(">i8").view(np.uint8).reshape(-1, 8)
        records = np.concatenate([self.weights[rows], self.state[rows]], axis=1).view(np.uint8)
        return hashlib.sha256(np.concatenate([keys, records], axis=1).tobytes()).hexdigest()

    def copy_of_rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.weights.copy(), self.state.copy(), self.materialised.copy()

    def put_back(self, rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        self.weights, self.state, self.materialised = (array.copy() for array in rows)

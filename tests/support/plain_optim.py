"""The optimizers a second time, from their papers and FBGEMM's documentation, in float64.

One row after the other, each array of state in a dict, no order of additions promised: what
``tiered_embed/optim`` calls its references is itself held against this.

Sources: Polyak 1964; Duchi et al. 2011; Tieleman & Hinton 2012; McMahan et al. 2013, algorithm 1;
Kingma & Ba 2015, algorithm 1; You, Gitman & Ginsburg 2017, algorithm 1; Loshchilov & Hutter 2019,
algorithm 2; You et al. 2020, algorithm 2; ``EmbOptimType`` of FBGEMM for the row-wise forms.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import tiered_embed as te

Row = np.ndarray  # (D,) float64
State = dict[str, Any]
Formula = Callable[[Any, Row, State, Row, int], Row]


def norm(x: Row) -> float:
    return math.sqrt(math.fsum(x * x))


def mean_square(x: Row) -> float:
    return math.fsum(x * x) / len(x)


def sgd(o: te.optim.SGD, w: Row, s: State, g: Row, t: int) -> Row:
    return w - o.lr * g


def momentum_sgd(o: te.optim.MomentumSGD, w: Row, s: State, g: Row, t: int) -> Row:
    s["momentum"] = o.momentum * s["momentum"] + g
    return w - o.lr * s["momentum"]


def adagrad(o: te.optim.Adagrad, w: Row, s: State, g: Row, t: int) -> Row:
    s["sum"] = s["sum"] + g**2
    return w - o.lr * g / (np.sqrt(s["sum"]) + o.eps)


def rowwise_adagrad(o: te.optim.RowWiseAdagrad, w: Row, s: State, g: Row, t: int) -> Row:
    s["sum"] = s["sum"] + mean_square(g)
    return w - o.lr * g / (np.sqrt(s["sum"]) + o.eps)


def rowwise_rmsprop(o: te.optim.RowWiseRMSProp, w: Row, s: State, g: Row, t: int) -> Row:
    s["mean_square"] = o.alpha * s["mean_square"] + (1 - o.alpha) * mean_square(g)
    return w - o.lr * g / (np.sqrt(s["mean_square"]) + o.eps)


def _adam_ratio(o: te.optim.Adam, s: State, g: Row, t: int, square: Any) -> Row:
    s["exp_avg"] = o.beta1 * s["exp_avg"] + (1 - o.beta1) * g
    s["exp_avg_sq"] = o.beta2 * s["exp_avg_sq"] + (1 - o.beta2) * square
    m_hat = s["exp_avg"] / (1 - o.beta1**t)
    v_hat = s["exp_avg_sq"] / (1 - o.beta2**t)
    return m_hat / (np.sqrt(v_hat) + o.eps)


def adam(o: te.optim.Adam, w: Row, s: State, g: Row, t: int) -> Row:
    return w - o.lr * _adam_ratio(o, s, g, t, g**2)


def partial_rowwise_adam(o: te.optim.PartialRowWiseAdam, w: Row, s: State, g: Row, t: int) -> Row:
    return w - o.lr * _adam_ratio(o, s, g, t, mean_square(g))


def _lamb(o: te.optim.LAMB, w: Row, ratio: Row) -> Row:
    """Layer-wise adaptation, a row being the layer; phi is the identity."""
    decay = o.weight_decay if o.weight_decay_mode == "decoupled" else 0.0
    direction = ratio + decay * w
    trust = norm(w) / norm(direction) if norm(w) > 0 and norm(direction) > 0 else 1.0
    return w - o.lr * trust * direction


def lamb(o: te.optim.LAMB, w: Row, s: State, g: Row, t: int) -> Row:
    return _lamb(o, w, _adam_ratio(o, s, g, t, g**2))


def partial_rowwise_lamb(o: te.optim.PartialRowWiseLAMB, w: Row, s: State, g: Row, t: int) -> Row:
    return _lamb(o, w, _adam_ratio(o, s, g, t, mean_square(g)))


def lars_sgd(o: te.optim.LARSSGD, w: Row, s: State, g: Row, t: int) -> Row:
    decay = o.weight_decay if o.weight_decay_mode == "l2" else 0.0
    below = norm(g) + decay * norm(w)
    local = o.eta * norm(w) / below if norm(w) > 0 and below > 0 else 1.0
    s["momentum"] = o.momentum * s["momentum"] + o.lr * local * (g + decay * w)
    return w - s["momentum"]


def ftrl(o: te.optim.FTRL, w: Row, s: State, g: Row, t: int) -> Row:
    """Per coordinate: alpha is lr, lambda_1 is l1, lambda_2 is l2_penalty."""
    out = np.empty_like(w)
    for i in range(len(w)):
        n, z = float(s["n"][i]), float(s["z"][i])
        sigma = (math.sqrt(n + g[i] ** 2) - math.sqrt(n)) / o.lr
        z = z + g[i] - sigma * w[i]
        n = n + g[i] ** 2
        s["n"][i], s["z"][i] = n, z
        if abs(z) <= o.l1:
            out[i] = 0.0
        else:
            sign = math.copysign(1.0, z)
            out[i] = -(z - sign * o.l1) / ((o.beta + math.sqrt(n)) / o.lr + o.l2_penalty)
    return out


FORMULAS: dict[type[te.optim.Optimizer], Formula] = {
    te.optim.SGD: sgd,
    te.optim.MomentumSGD: momentum_sgd,
    te.optim.Adagrad: adagrad,
    te.optim.RowWiseAdagrad: rowwise_adagrad,
    te.optim.RowWiseRMSProp: rowwise_rmsprop,
    te.optim.Adam: adam,
    te.optim.AdamW: adam,
    te.optim.PartialRowWiseAdam: partial_rowwise_adam,
    te.optim.LAMB: lamb,
    te.optim.PartialRowWiseLAMB: partial_rowwise_lamb,
    te.optim.LARSSGD: lars_sgd,
    te.optim.FTRL: ftrl,
}

# Whose formula holds the weight decay of that mode.
IN_FORMULA = {
    (te.optim.LAMB, "decoupled"),
    (te.optim.PartialRowWiseLAMB, "decoupled"),
    (te.optim.LARSSGD, "l2"),
}


class PlainTable:
    """``weights`` (U, D) and named state of rows that train at every step."""

    def __init__(self, optimizer: te.optim.Optimizer, weights: np.ndarray) -> None:
        self.optimizer = optimizer
        self.rows = [row.astype(np.float64) for row in weights]
        layout = optimizer.state_layout(weights.shape[1])
        self.state: list[State] = [
            {name: np.zeros(width) for name, width in layout.items()} for _ in self.rows
        ]
        self.steps = 0

    @property
    def weights(self) -> np.ndarray:
        return np.array(self.rows)

    def array(self, name: str) -> np.ndarray:
        """(U, width) of one array of state."""
        return np.array([s[name] for s in self.state]).reshape(len(self.rows), -1)

    def step(
        self, grad: np.ndarray, occurrences: np.ndarray | None = None, scale: float = 1.0
    ) -> None:
        """One update of every row with its summed gradient, ``grad`` (U, D)."""
        self.steps += 1
        grads = []
        for u, row in enumerate(grad.astype(np.float64)):
            g = row / occurrences[u] if occurrences is not None else row
            grads.append(self._clipped(g * scale))
        limit = self.optimizer.clip_global_norm
        if limit is not None:
            total = math.sqrt(math.fsum(norm(g) ** 2 for g in grads))
            grads = [g * min(1.0, limit / (total + 1e-6)) for g in grads]
        for u, g in enumerate(grads):
            self.rows[u] = self._updated(self.rows[u], self.state[u], g)

    def _clipped(self, g: Row) -> Row:
        o = self.optimizer
        if o.clip_value is not None:
            g = np.array([max(-o.clip_value, min(o.clip_value, x)) for x in g.tolist()])
        if o.clip_row_norm is not None:
            g = g * min(1.0, o.clip_row_norm / (norm(g) + 1e-6))
        return g

    def _updated(self, w: Row, state: State, g: Row) -> Row:
        o = self.optimizer
        if (type(o), o.weight_decay_mode) not in IN_FORMULA:
            if o.weight_decay_mode == "decoupled":
                w = w - o.lr * o.weight_decay * w
            else:
                g = g + o.weight_decay * w
        return FORMULAS[type(o)](o, w, state, g, self.steps)

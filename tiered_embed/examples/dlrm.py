"""DLRM on the Criteo log: the model, its training loop and its held-out scores.

Source: Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", arXiv:1906.00091. A bottom MLP takes the dense features. Its output and the embeddings of
the 26 categories interact by dot products. A top MLP turns that output and the products into one
logit.

Everything except the embedding collection is ordinary torch: a ``torch.optim`` optimizer trains the
dense part, and embeddings update during ``backward``. Shapes: ``B`` examples, ``T`` tables, ``D``
embedding dim.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

import tiered_embed as te

from ..traces import NUM_CATEGORIES, NUM_INTEGERS, NUM_RAW_IDS, CriteoBatch

__all__ = [
    "DLRM",
    "FEATURE_NAMES",
    "Scores",
    "criteo_tables",
    "evaluate",
    "interact",
    "lookups",
    "train",
]

FEATURE_NAMES = tuple(f"C{i + 1}" for i in range(NUM_CATEGORIES))

Lookups = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class DLRM(nn.Module):
    """The model over an embedding collection.

    Args:
        embeddings: takes {feature: (ids, offsets)} and returns an object whose ``[feature]`` is
            float32 (B, D); a ``te.TieredEmbeddingBagCollection``.
        embedding_dim: D.
        feature_names: the T features, in the order of the interaction.
        num_dense: number of dense features.
        bottom, top: hidden widths; the bottom MLP ends with D outputs, the top one with 1.
        seed: seed of the dense weights, which are drawn as in Naumov et al.'s code, without use of
            torch's global generator.
    """

    def __init__(
        self,
        embeddings: nn.Module,
        embedding_dim: int,
        feature_names: Sequence[str] = FEATURE_NAMES,
        num_dense: int = NUM_INTEGERS,
        bottom: Sequence[int] = (64, 32),
        top: Sequence[int] = (64, 32),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.feature_names = tuple(feature_names)
        num_vectors = len(self.feature_names) + 1
        generator = torch.Generator().manual_seed(seed)
        self.bottom = _mlp((num_dense, *bottom, embedding_dim), generator, last_relu=True)
        num_products = num_vectors * (num_vectors - 1) // 2
        self.top = _mlp((embedding_dim + num_products, *top, 1), generator, last_relu=False)

    def forward(self, dense: torch.Tensor, features: Lookups) -> torch.Tensor:
        """Return the logits, float32 (B,), of ``dense`` float32 (B, num_dense) and the bags."""
        embedded = self.embeddings(features)
        x = self.bottom(dense)
        vectors = torch.stack([x, *(embedded[name] for name in self.feature_names)], dim=1)
        logits: torch.Tensor = self.top(torch.cat([x, interact(vectors)], dim=1))
        return logits.squeeze(1)

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return what a torch optimizer should train: everything except the embeddings."""
        return [*self.bottom.parameters(), *self.top.parameters()]


def interact(vectors: torch.Tensor) -> torch.Tensor:
    """Return the dot products of all pairs i > j: (B, V, D) -> (B, V * (V - 1) / 2), row by row."""
    num_vectors = vectors.shape[1]
    products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
    row, column = torch.tril_indices(num_vectors, num_vectors, -1, device=vectors.device)
    return products.index_select(1, row * num_vectors + column)


def _mlp(widths: Sequence[int], generator: torch.Generator, last_relu: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        # Made on "meta" first: on the CPU, nn.Linear would draw from the global generator.
        linear = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
        weight_std = math.sqrt(2.0 / (fan_in + fan_out))
        nn.init.normal_(linear.weight, 0.0, weight_std, generator=generator)
        nn.init.normal_(linear.bias, 0.0, math.sqrt(1.0 / fan_out), generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


def criteo_tables(embedding_dim: int, num_embeddings: int = NUM_RAW_IDS) -> list[te.TableConfig]:
    """Return one table per category; by default large enough for the raw 32-bit ids of the log."""
    return [
        te.TableConfig(
            name=name,
            num_embeddings=num_embeddings,
            embedding_dim=embedding_dim,
            feature_names=[name],
            mode="sum",
        )
        for name in FEATURE_NAMES
    ]


def lookups(batch: CriteoBatch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return {feature: (ids, offsets)} of a batch: B bags of one id, int64 (B,) each."""
    offsets = torch.arange(len(batch))
    return {
        name: (torch.from_numpy(ids), offsets)
        for name, ids in zip(FEATURE_NAMES, batch.ids, strict=True)
    }


def train(
    model: DLRM,
    batches: Iterable[CriteoBatch],
    optimizer: torch.optim.Optimizer,
    on_step: Callable[[int, float], Any] | None = None,
) -> int:
    """Train on each batch once and return the number of batches.

    ``optimizer`` updates the dense part; tiered embeddings update in ``backward``. ``batches`` is
    usually a ``te.prefetch``. ``on_step(step, loss)`` is called after each step.
    """
    criterion = nn.BCEWithLogitsLoss()
    num_steps = 0
    model.train()
    for batch in batches:
        logits = model(torch.from_numpy(batch.dense), lookups(batch))
        loss = criterion(logits, torch.from_numpy(batch.labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        num_steps += 1
        if on_step is not None:
            on_step(num_steps, loss.item())
    return num_steps


@dataclass(frozen=True)
class Scores:
    """Held-out scores: mean log loss in nats, area under the ROC curve, number of examples."""

    log_loss: float
    auc: float
    num_examples: int


def evaluate(model: DLRM, batches: Iterable[CriteoBatch]) -> Scores:
    """Score the model without training it; the model's mode is restored.

    Raises:
        ValueError: no batch, or only one of the two labels, for which AUC is not defined.
    """
    was_training = model.training
    model.eval()
    labels, chances = [], []
    with torch.no_grad():
        for batch in batches:
            logits = model(torch.from_numpy(batch.dense), lookups(batch))
            chances.append(torch.sigmoid(logits.double()).numpy())
            labels.append(batch.labels)
    model.train(was_training)
    truth = np.concatenate(labels) if labels else np.empty(0, dtype=np.float32)
    if len(np.unique(truth)) < 2:
        raise ValueError(
            f"scores need examples of both labels; {len(truth)} examples have one label or none"
        )
    predicted = np.concatenate(chances)
    return Scores(
        float(log_loss(truth, predicted)), float(roc_auc_score(truth, predicted)), len(truth)
    )

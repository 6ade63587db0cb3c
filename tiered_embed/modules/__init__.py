"""The drop-in modules. Each class only shapes its calls; the engine does the work."""

from .bag import TieredEmbeddingBag
from .base import TieredModule
from .collection import TieredEmbeddingBagCollection, is_keyed_jagged
from .embedding import TieredEmbedding

__all__ = [
    "TieredEmbedding",
    "TieredEmbeddingBag",
    "TieredEmbeddingBagCollection",
    "TieredModule",
    "is_keyed_jagged",
]

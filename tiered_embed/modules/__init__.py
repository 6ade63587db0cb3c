"""The drop-in modules. ``runtime.py`` is what they share; each class only shapes its calls."""

from .bag import TieredEmbeddingBag
from .collection import TieredEmbeddingBagCollection
from .embedding import TieredEmbedding

__all__ = ["TieredEmbedding", "TieredEmbeddingBag", "TieredEmbeddingBagCollection"]

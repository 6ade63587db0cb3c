"""The drop-in modules: signatures, documentation and torch's protocols. The engine does the work.

Threading: a module belongs to one thread at a time.
"""

from .bag import TieredEmbeddingBag
from .base import TieredModule
from .collection import TieredEmbeddingBagCollection, is_keyed_jagged
from .embedding import TieredEmbedding
from .lifetime import close_all

__all__ = [
    "TieredEmbedding",
    "TieredEmbeddingBag",
    "TieredEmbeddingBagCollection",
    "TieredModule",
    "close_all",
    "is_keyed_jagged",
]

"""The drop-in modules: signatures, documentation and torch's protocols. The engine does the work.

Threading: a module belongs to one thread at a time.
"""

from .bag import TieredEmbeddingBag
from .base import TieredModule
from .collection import TieredEmbeddingBagCollection
from .embedding import TieredEmbedding
from .joined import joined
from .keyed import TieredCollection, is_keyed_jagged
from .lifetime import close_all
from .unpooled_collection import TieredEmbeddingCollection

__all__ = [
    "TieredCollection",
    "TieredEmbedding",
    "TieredEmbeddingBag",
    "TieredEmbeddingBagCollection",
    "TieredEmbeddingCollection",
    "TieredModule",
    "close_all",
    "is_keyed_jagged",
    "joined",
]

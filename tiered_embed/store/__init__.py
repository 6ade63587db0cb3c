"""Where rows live below memory: one ``RowStore`` contract, three backends, one way to open them.

``keys.py`` encodes keys; ``directory.py`` locks a store's directory, ``description.py`` and
``marks.py`` say what lies there; ``base.py`` holds the contract, which ``rocksdb.py``,
``rocksdb_py.py`` and ``memory.py`` implement. ``opening.py`` opens one store, where ``handles.py``
and ``threads.py`` say whether the process may have the files and threads that this takes, and
``forked.py`` what a forked child may do. ``working.py`` finds those of a working directory,
``replacing.py`` replaces one. Which rows are stored when is the planner's and the
engine's business.
"""

from .base import Chunk, RowStore, StoreOptions
from .description import WHOLE, StoreLayout
from .directory import (
    OpenHereError,
    StoreDirectory,
    make_directory,
    os_errors,
    read_description,
    read_meta,
    replace_file,
    sync_path,
    write_meta,
)
from .keys import KEY_BYTES, decode_rows, encode_keys, table_range
from .marks import Mark, has_marks, mark_finished, mark_training, read_marks
from .opening import default_backend, open_store
from .replacing import Replacement
from .rocksdb import RocksDbRowStore
from .trees import copy_tree, remove_tree, sync_tree
from .working import check_grouping, drop_table, open_pool_store

__all__ = [
    "KEY_BYTES",
    "WHOLE",
    "Chunk",
    "Mark",
    "OpenHereError",
    "Replacement",
    "RocksDbRowStore",
    "RowStore",
    "StoreDirectory",
    "StoreLayout",
    "StoreOptions",
    "check_grouping",
    "copy_tree",
    "decode_rows",
    "default_backend",
    "drop_table",
    "encode_keys",
    "has_marks",
    "make_directory",
    "mark_finished",
    "mark_training",
    "open_pool_store",
    "open_store",
    "os_errors",
    "read_description",
    "read_marks",
    "read_meta",
    "remove_tree",
    "replace_file",
    "sync_path",
    "sync_tree",
    "table_range",
    "write_meta",
]

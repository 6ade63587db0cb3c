"""A chunk of a ``.tet`` file as bytes: columns of integers, each in as few bytes as it needs.

A column is 18 bytes, ``kind`` u8, ``width`` u8, ``count`` u64, ``base`` i64 (little-endian), and
``width`` planes of ``count`` bytes: the lowest byte of every value, then the second, and so on, so
that similar bytes are next to each other for the compressor. Value ``i`` is ``base + v[i]`` (kind
0) or, for kind 1, the first is ``base`` and each next one adds ``v[i]`` in zigzag form. All
arithmetic is modulo 2**64. Kind 2 is for wide values that repeat: a column of the ``base`` distinct
values comes before the planes, and value ``i`` is number ``v[i]`` of them.

A chunk holds for each table the lengths of its batches and its ids, and then one byte, which is 1
if bags are known. In that case the number of samples in every batch follows, and for each table one
byte: 1 if the lengths of its bags follow, 0 if every bag is one id.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from .chunk import I64, TraceBags, TraceChunk

__all__ = ["Damage", "decode_chunk", "encode_chunk"]

U64 = npt.NDArray[np.uint64]

_HEAD = struct.Struct("<BBQq")
_PLAIN, _DELTA, _DISTINCT = 0, 1, 2
_WIDE = 4  # bytes per value; narrower values stay as they are
_WORTH = 0.8
# Values without planes take no bytes, so that damage could claim any number of them. A longer
# column therefore always has planes.
_MOST_WITHOUT_PLANES = 1 << 28


class Damage(Exception):
    """Bytes that no writer makes; the text says which. ``tet`` raises it as CorruptionError."""


def encode_chunk(chunk: TraceChunk) -> bytes:
    """Return the chunk's columns."""
    out: list[bytes] = []
    for offsets, ids in chunk.table_ids:
        out += [_encode(np.diff(offsets)), _encode(ids)]
    if chunk.bags is None:
        return b"".join([*out, b"\0"])
    out += [b"\1", _encode(np.diff(chunk.bags.samples))]
    for starts in chunk.bags.starts:
        out += [b"\0"] if starts is None else [b"\1", _encode(np.diff(starts))]
    return b"".join(out)


def decode_chunk(data: bytes, num_tables: int) -> TraceChunk:
    """Return the chunk of ``num_tables`` tables that ``encode_chunk`` turned into ``data``.

    Raises:
        Damage: lengths that do not fit together, or bytes missing or left over.
    """
    reader = _Reader(data)
    parts = []
    for t in range(num_tables):
        offsets = reader.offsets(f"table {t}: batches")
        ids = reader.column()
        _agree(f"table {t}: batches", offsets, len(ids))
        parts.append((offsets, ids))
    num_batches = len(parts[0][0]) - 1
    for t, (offsets, _) in enumerate(parts):
        if len(offsets) != num_batches + 1:
            raise Damage(f"table {t} has {len(offsets) - 1} batches, but table 0 has {num_batches}")
    bags = None
    if reader.flag():
        bags = _decode_bags(reader, parts)
    if reader.position != len(data):
        raise Damage(f"{len(data) - reader.position} bytes follow the last column")
    return TraceChunk(tuple(parts), bags)


def _decode_bags(reader: _Reader, parts: list[tuple[I64, I64]]) -> TraceBags:
    samples = reader.offsets("samples")
    if len(samples) != len(parts[0][0]):
        raise Damage(
            f"there are samples for {len(samples) - 1} batches, but {len(parts[0][0]) - 1} batches"
        )
    starts: list[I64 | None] = []
    for t, (offsets, ids) in enumerate(parts):
        own = reader.offsets(f"table {t}: bags") if reader.flag() else None
        starts.append(own)
        if own is not None:
            _agree(f"table {t}: bags", own, len(ids))
            if len(own) != samples[-1] + 1:
                raise Damage(f"table {t} has {len(own) - 1} bags for {samples[-1]} samples")
        if not np.array_equal(samples if own is None else own[samples], offsets):
            raise Damage(f"table {t}: a batch does not end where a bag ends")
    return TraceBags(samples, tuple(starts))


def _agree(what: str, offsets: I64, num_ids: int) -> None:
    if offsets[-1] != num_ids:
        raise Damage(f"{what} hold {offsets[-1]} ids, but there are {num_ids}")


def _encode(values: I64) -> bytes:
    simple = _encode_simple(values)
    if len(values) == 0 or len(simple) < _WIDE * len(values):
        return simple
    distinct, places = np.unique(values, return_inverse=True)
    if 2 * len(distinct) > len(values):
        return simple
    planes = _planes(places.astype(np.uint64))
    ahead = _encode_simple(distinct)
    if len(ahead) + len(planes) > _WORTH * len(simple):
        return simple
    width = len(planes) // len(values)
    return _HEAD.pack(_DISTINCT, width, len(values), len(distinct)) + ahead + planes


def _encode_simple(values: I64) -> bytes:
    """The column as kind 0 or 1, whichever is shorter."""
    if len(values) == 0:
        return _HEAD.pack(_PLAIN, 0, 0, 0)
    unsigned = values.view(np.uint64)
    low, first = int(values.min()), int(values[0])
    plain = unsigned - np.array(low, np.int64).view(np.uint64)
    steps = np.zeros(len(values), np.uint64)
    steps[1:] = _zigzag(unsigned[1:] - unsigned[:-1])
    if _width(steps) < _width(plain):
        planes = _planes(steps)
        return _HEAD.pack(_DELTA, len(planes) // len(values), len(values), first) + planes
    planes = _planes(plain)
    return _HEAD.pack(_PLAIN, len(planes) // len(values), len(values), low) + planes


def _planes(values: U64) -> bytes:
    width = max(_width(values), int(len(values) > _MOST_WITHOUT_PLANES))
    as_bytes = values.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    return as_bytes[:, :width].T.tobytes()


def _width(values: U64) -> int:
    return (int(values.max()).bit_length() + 7) // 8


def _zigzag(steps: U64) -> U64:
    signed = steps.view(np.int64)
    return ((signed << 1) ^ (signed >> 63)).view(np.uint64)


class _Reader:
    """Reads columns and flags from ``data``, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def flag(self) -> bool:
        if self.position >= len(self.data):
            raise Damage(f"a flag is missing at byte {self.position}")
        value = self.data[self.position]
        if value > 1:
            raise Damage(f"a flag at byte {self.position} is {value}; it must be 0 or 1")
        self.position += 1
        return value == 1

    def column(self, *, nested: bool = False) -> I64:
        start = self.position
        if len(self.data) - start < _HEAD.size:
            raise Damage(f"a column is cut off at byte {start}")
        kind, width, count, base = _HEAD.unpack_from(self.data, start)
        if kind > (_DELTA if nested else _DISTINCT) or width > 8:
            raise Damage(f"a column of unknown kind {kind} or width {width} at byte {start}")
        self.position = start + _HEAD.size
        distinct = self.column(nested=True) if kind == _DISTINCT else None
        too_many = width == 0 and count > _MOST_WITHOUT_PLANES
        if too_many or width * count > len(self.data) - self.position:
            raise Damage(
                f"a column of {count} values of {width} bytes at byte {start} does not fit"
            )
        planes = np.frombuffer(self.data, np.uint8, width * count, self.position)
        self.position += width * count
        wide = np.zeros((count, 8), np.uint8)
        wide[:, :width] = planes.reshape(width, count).T
        values = wide.reshape(-1).view("<u8").astype(np.uint64, copy=False)
        if distinct is not None:
            if len(distinct) != base or (count and values.max() >= np.uint64(base)):
                raise Damage(f"a column of {base} distinct values at byte {start} refers to others")
            return distinct[values.view(np.int64)]
        origin = np.array(base, np.int64).view(np.uint64)
        if kind == _DELTA:
            steps = (values >> np.uint64(1)) ^ (np.uint64(0) - (values & np.uint64(1)))
            return (np.cumsum(steps, dtype=np.uint64) + origin).view(np.int64)
        return (values + origin).view(np.int64)

    def offsets(self, what: str) -> I64:
        lengths = self.column()
        if len(lengths) and lengths.min() < 0:
            raise Damage(f"{what} have a negative length, {lengths.min()}")
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if (offsets < 0).any():
            raise Damage(f"{what} have lengths whose sum overflows")
        return offsets

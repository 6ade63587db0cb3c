"""What ``te.swap`` reports of each table that it looked at.

Plain data; :mod:`.swapping` makes it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SwapEntry", "SwapReport"]


@dataclass(frozen=True)
class SwapEntry:
    """One table that :func:`~tiered_embed.swap` looked at.

    path: the module's dotted path, followed by the table's name in a collection. The tiered table
        has this name.
    class_name: the class of the module that was found.
    weight_bytes: the bytes of the weights alone.
    reason: why the module was left as it was; empty when it was swapped.
    other_paths: other places of the same module in the model.
    held_by: what else in the process still holds the old weight. It no longer reaches the rows.
    """

    path: str
    class_name: str
    num_embeddings: int
    embedding_dim: int
    weight_bytes: int
    reason: str = ""
    other_paths: tuple[str, ...] = ()
    held_by: tuple[str, ...] = ()

    @property
    def swapped(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class SwapReport:
    """What :func:`~tiered_embed.swap` did, in the model's order; ``str()`` prints a table."""

    entries: tuple[SwapEntry, ...]

    @property
    def swapped(self) -> tuple[SwapEntry, ...]:
        return tuple(entry for entry in self.entries if entry.swapped)

    @property
    def left(self) -> tuple[SwapEntry, ...]:
        return tuple(entry for entry in self.entries if not entry.swapped)

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [("module", "class", "rows", "dim", "bytes", "")]
        for entry in self.entries:
            path = ", ".join((entry.path, *entry.other_paths))
            numbers = (entry.num_embeddings, entry.embedding_dim, entry.weight_bytes)
            outcome = "swapped" if entry.swapped else f"left: {entry.reason}"
            if entry.held_by:
                outcome += f"; its old weight is held by {', '.join(entry.held_by)}"
            lines.append((path, entry.class_name, *(f"{n:,}" for n in numbers), outcome))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        text = [
            "  ".join(
                cell.rjust(width) if 2 <= i <= 4 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, [*widths, 0], strict=True))
            ).rstrip()
            for line in lines
        ]
        some, every = (
            sum(entry.weight_bytes for entry in entries) for entries in (self.swapped, self.entries)
        )
        text.append(
            f"{len(self.swapped)} of {len(self.entries)} tables swapped, "
            f"{some:,} of {every:,} bytes"
        )
        if self.swapped:
            text.append(
                "a forward that reads .weight of a swapped module (logits, a penalty) is refused "
                "when it trains; leave such modules out with include="
            )
        return "\n".join(text)

"""One call for everything that can be simulated: the planner's policies, others, and bounds.

======================= =========================================================
``lru``, ``lookahead``   the planner's, over batches; all of ``residency.POLICIES``
``access:NAME``          those of ``classics``, at each access
``libcachesim:NAME``     libCacheSim's, at each access
``belady``               the bound at each access
``belady:batch``         the bound between batches, with the planner's pins
======================= =========================================================
"""

from __future__ import annotations

from ..errors import ConfigError
from ..residency import POLICIES
from ..traces import Trace
from .bounds import belady, belady_batches
from .classics import CLASSICS, classic
from .curve import Within
from .peers import PEERS, peer
from .planner_replay import SimulatedCounts, replay

__all__ = ["misses_of", "policy_names", "within_of"]


def policy_names() -> list[str]:
    """All policies that :func:`misses_of` takes."""
    return [
        *POLICIES,
        *(f"access:{name}" for name in CLASSICS),
        *(f"libcachesim:{name}" for name in PEERS),
        "belady",
        "belady:batch",
    ]


def within_of(policy: str) -> Within:
    """What a lookup is to a policy: each unique row of a batch, or every access."""
    return "batch" if policy in POLICIES or policy == "belady:batch" else "access"


def misses_of(
    trace: Trace, slots: int, policy: str, *, lookahead: int = 32, depth: int = 2
) -> SimulatedCounts:
    """The counts of a topmost tier of ``slots`` rows that all tables share.

    lookahead, depth: used by the planner's policies, and depth by ``belady:batch``.

    Raises:
        ConfigError: an unknown policy, or options that it refuses.
    """
    kind, _, name = policy.partition(":")
    if policy in POLICIES:
        return replay(trace, slots, policy, lookahead, depth).total
    if kind == "access" and name in CLASSICS:
        return classic(trace, slots, name)
    if kind == "libcachesim" and name in PEERS:
        return peer(trace, slots, name)
    if policy == "belady":
        return belady(trace, slots)
    if policy == "belady:batch":
        return belady_batches(trace, slots, depth)
    raise ConfigError(f"policy is {policy!r}; choose one of {', '.join(policy_names())}")

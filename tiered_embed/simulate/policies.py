"""One call for whatever can be simulated: the planner's policies, the literature's, the bounds.

======================= =========================================================
``lru``, ``lookahead``   the planner's, over batches; all of ``residency.POLICIES``
``access:NAME``          ``classics``, one access after the other
``libcachesim:NAME``     libCacheSim's, likewise
``belady``               the best at each access
``belady:batch``         the best between batches, with the planner's pins
======================= =========================================================
"""

from __future__ import annotations

from ..errors import ConfigError
from ..residency import POLICIES
from ..traces import Trace
from .bounds import belady, belady_batches
from .classics import CLASSICS, classic
from .peers import PEERS, peer
from .planner_replay import SimulatedCounts, replay

__all__ = ["misses_of", "policy_names"]


def policy_names() -> list[str]:
    """Everything that :func:`misses_of` knows."""
    return [
        *POLICIES,
        *(f"access:{name}" for name in CLASSICS),
        *(f"libcachesim:{name}" for name in PEERS),
        "belady",
        "belady:batch",
    ]


def misses_of(
    trace: Trace, slots: int, policy: str, *, lookahead: int = 32, depth: int = 2
) -> SimulatedCounts:
    """The topmost tier's counts with ``slots`` rows that all tables share.

    lookahead, depth: of the planner's policies.

    Raises:
        ConfigError: a policy that nobody knows, or options that it refuses.
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

"""The kinds of torture: what each runs, how often, and what it must show."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bit_flips
import file_damage
import full_disk
import fuzzed_calls
import io_errors
import manifests
import random_kills
import soak
import step_kills
import store_faults
from report import Report


@dataclass(frozen=True)
class Kind:
    """``run(count, seed, folder)``; ``count`` is the full one, ``short`` that of ``make test``."""

    title: str
    run: Callable[[int, int, Path], Report]
    count: int
    short: int
    expected: str
    at_least: int  # that the full run must have done
    forks: bool = False  # and has the shim preloaded
    per_mille: bool = True  # a fraction of the full run has a fraction of the count


KINDS: dict[str, Kind] = {
    "random_kills": Kind(
        "kill -9 at random moments of a training run",
        random_kills.run,
        count=220,
        short=8,
        expected="resumed bit for bit",
        at_least=200,
        forks=True,
    ),
    "step_kills": Kind(
        "kill before each file operation of a save",
        step_kills.run,
        count=10,
        short=0,
        expected="last committed checkpoint loads",
        at_least=500,
        forks=True,
    ),
    "store_power": Kind(
        "power loss under the store, unsynced data dropped",
        store_faults.run_power,
        count=2000,
        short=60,
        expected="prefix-consistent, nothing acknowledged lost",
        at_least=1000,
    ),
    "store_errors": Kind(
        "fault at every file operation of the store, seven workloads",
        store_faults.run_errors,
        count=1,
        short=0,  # RocksDB 7.8 may hang in DB::Close after a fault, once in some 16,000
        expected="typed error, nothing acknowledged lost",
        at_least=1500,
        per_mille=False,
    ),
    "bit_flips": Kind(
        "bit flips over every file of a checkpoint",
        bit_flips.run,
        count=6000,
        short=150,
        expected="0 silent",
        at_least=5000,
    ),
    "file_damage": Kind(
        "files truncated, swapped, deleted, added",
        file_damage.run,
        count=600,
        short=40,
        expected="0 silent",
        at_least=500,
    ),
    "io_errors": Kind(
        "fault at every changing file operation, five workloads",
        io_errors.run,
        count=0,
        short=24,
        expected="typed error, nothing acknowledged lost",
        at_least=500,
        forks=True,
        per_mille=False,
    ),
    "full_disk": Kind(
        "a file system that is really full",
        full_disk.run,
        count=20,
        short=2,
        expected="typed error, nothing acknowledged lost",
        at_least=20,
        forks=True,
    ),
    "fuzzed_calls": Kind(
        "fuzzed public calls",
        fuzzed_calls.run,
        count=60_000,
        short=1500,
        expected="documented exceptions, digest unchanged",
        at_least=50_000,
    ),
    "manifests": Kind(
        "mutated manifests",
        manifests.run,
        count=24_000,
        short=500,
        expected="refused, nothing else touched",
        at_least=20_000,
    ),
    "soak": Kind(
        "row updates against a dense oracle",
        soak.run,
        count=6_000_000,
        short=60_000,
        expected="zero differences",
        at_least=5_000_000,
    ),
}

"""Drawn training programs: what ``te.swap`` makes of a model trains as the model did, or the
difference is said. ``support/programs.py`` says what is drawn.

TIERED_EMBED_PROGRAMS: how many the long run draws; 1,500 without it.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, seed, settings

from programs import Program, Said, Tiered, Torch, programs

LARGE = 20.0
MANY = int(os.environ.get("TIERED_EMBED_PROGRAMS", "1500"))


def run(program: Program) -> None:
    torch.set_default_dtype(program.default_dtype)
    try:
        peer = Torch(program)
        peer.run()
        # A program that diverges makes any rounding as large as it likes.
        assume(all(x.abs().max() < LARGE for x in (*peer.outputs, *peer.weights()) if x.numel()))
        with tempfile.TemporaryDirectory() as folder, Said() as said:
            ours = Tiered(program, Path(folder))
            try:
                ours.run()
                weights = ours.weights()
            except RuntimeError as error:
                # The second loss of a forward, where nothing sums them.
                if program.told != "te.accumulate" or "te.accumulate" not in str(error):
                    raise
                return
            finally:
                ours.model.emb.close()
    finally:
        torch.set_default_dtype(torch.float32)
    close = {"rtol": 1e-4, "atol": 2e-5}
    if program.autocast:
        close = {"rtol": 5e-2, "atol": 5e-2}
    told = [m for m in said.messages if "transient slots" not in m and "could not use" not in m]
    try:
        for mine, wanted in zip(ours.outputs, peer.outputs, strict=True):
            torch.testing.assert_close(mine, wanted, **close)
        for mine, wanted in zip(weights, peer.weights(), strict=True):
            torch.testing.assert_close(mine, wanted, **close)
    except AssertionError:
        # Never a silent difference.
        if program.told is None or not any(program.told in message for message in told):
            raise
        return
    if program.told is None:
        assert not told


@settings(deadline=None, derandomize=True, max_examples=150, print_blob=True)
@given(programs())
def test_a_program_trains_as_on_torchs_module(program: Program) -> None:
    run(program)


def many(part: int) -> Callable[[], None]:
    """A quarter of a long run, with programs of its own."""

    @pytest.mark.long
    @seed(part)
    @settings(deadline=None, max_examples=MANY // 4, print_blob=True)
    @given(programs())
    def test(program: Program) -> None:
        run(program)

    return test


test_many_programs_0 = many(0)
test_many_programs_1 = many(1)
test_many_programs_2 = many(2)
test_many_programs_3 = many(3)

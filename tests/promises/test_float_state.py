"""Promise 1, whatever the floating-point state of the threads is: flush-to-zero, rounding, traps.

A thread's state is its own, and other libraries change it.
"""

import json
import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import streams
import tiered_embed as te
from golden_runs import KINDS, STREAMS
from reference import DenseTrainer, Stream
from running import RECIPES, SEED, Prepared, make_module
from tiered_embed import _native

TESTS = Path(__file__).parents[1]
GOLDEN = json.loads((TESTS / "golden" / "digests.json").read_text())
ZERO = te.init.Constant(0.0)  # so that updates of any size show
ROOMY = te.Tiers(ddr="64MiB")


@pytest.fixture
def flushing():
    """A context in which this thread flushes subnormal numbers to zero."""

    @contextmanager
    def flush():
        assert torch.set_flush_denormal(True), "this processor cannot flush"
        try:
            yield
        finally:
            torch.set_flush_denormal(False)

    assert np.float32(1e-39) * np.float32(0.5) > 0, "an earlier test left this thread flushing"
    return flush


def tiny() -> Stream:
    """Gradients whose products, squares or updates are often subnormal; enough for two threads."""
    stream = streams.duplicates(130, num_batches=6)
    gradients = [
        {f: g * np.float32(2.0 ** (-62 if i % 2 else -124)) for f, g in grads.items()}
        for i, grads in enumerate(stream.gradients)
    ]
    return Stream(stream.tables, stream.batches, tuple(gradients))


def tiny_trainer(stream: Stream, kind: str) -> DenseTrainer:
    recipe = RECIPES[kind]
    return DenseTrainer(
        stream.tables,
        recipe.optimizer,
        init=ZERO,
        seed=SEED,
        storage=recipe.storage,
        rounding=recipe.rounding,
        by_frequency=recipe.by_frequency,
    )


def module_of(stream, kind, **options):
    recipe = RECIPES[kind]
    return make_module(
        stream.tables, ROOMY, recipe.optimizer, num_threads=2, **recipe.options(), **options
    )


@pytest.mark.parametrize("update", ["backward", "step"])
@pytest.mark.parametrize("kind", RECIPES)
def test_subnormal_gradients_give_the_reference_bits(kind, update, flushing):
    stream = tiny()
    trainer = tiny_trainer(stream, kind)
    outputs = []
    for batch, gradients in zip(stream.batches, stream.gradients, strict=True):
        outputs.append(trainer.forward(batch))
        trainer.backward(batch, gradients)
    wanted = trainer.digest()
    prepared = Prepared(stream)
    with flushing(), module_of(stream, kind, init=ZERO, update=update) as module:
        prepared.train(module, outputs)
        assert module.digest() == wanted


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("update", ["backward", "step"])
def test_accumulated_subnormal_gradients_give_the_reference_bits(kind, update, flushing):
    stream = tiny()
    trainer = tiny_trainer(stream, kind)
    trainer.accumulated(stream.batches, stream.gradients)
    prepared = Prepared(stream)
    with flushing(), module_of(stream, kind, init=ZERO, update=update) as module:
        with te.accumulate(module):
            # One backward pass: of several, with "step", torch adds up the sums.
            outs = [prepared.call(module, args)["hot"] for args in prepared.args]
            torch.autograd.backward(outs, [g["hot"] for g in prepared.gradients])
        if update == "step":
            te.row_optimizer(module).step()
        assert module.digest() == trainer.digest()


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, kinds in KINDS.items() for k in kinds])
def test_golden_digests_hold_with_flush_to_zero(name, kind, flushing):
    stream = STREAMS[name]()
    with flushing(), module_of(stream, kind) as module:
        Prepared(stream).train(module)
        assert module.digest() == GOLDEN[name][kind]


def test_subnormal_options_reach_the_rows(flushing):
    """Initial values and learning rates below 2^-126."""
    ids = torch.arange(64)

    def run():
        with te.TieredEmbedding(
            64,
            24,
            tiers=te.Tiers(ddr="1MiB"),
            optimizer=te.optim.SGD(lr=1e-40),
            init=te.init.Uniform(1e-39, 7e-39),
            max_norm=1.0,
        ) as module:
            out = module(ids)
            out.backward(torch.ones_like(out))
            with torch.no_grad():
                seen = module(ids)
            return [module.rows(ids), out.detach(), seen]

    wanted = run()
    assert (wanted[0] > 0).all()
    assert wanted[0].max() < 2**-126
    with flushing():
        got = run()
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_a_block_restores_what_it_found(flushing):
    small = np.float32(2.0**-126)
    half = np.float32(0.5)
    with flushing():
        with _native.StandardFloats():
            assert small * half > 0
        assert small * half == 0
    assert small * half > 0


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="the numbers of the states are glibc's on x86-64",
)
def test_golden_digests_hold_with_altered_workers():
    """With workers that round up, flush, and trap every exception."""
    search = os.pathsep.join([str(TESTS / "support"), os.environ.get("PYTHONPATH", "")])
    options = ["-q", "-p", "altered_workers", "-p", "no:cacheprovider"]
    chosen = "duplicates_130 or maxima or (backward and not accumulated)"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-k", chosen, __file__],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]

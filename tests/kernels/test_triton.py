"""The Triton kernels: the native kernels' bits, shown without a GPU.

Two halves. Interpreted in Python, the programs train to the digest of the native kernels. Compiled
for a GPU, they hold no instruction that would round otherwise: no fused multiply-add, no
approximate division or root, no flush of small numbers to zero. ``tests/gpu`` runs them.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiered_embed as te
from tiered_embed import _native

if not sys.platform.startswith("linux"):
    pytest.skip("Triton is for Linux alone", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tiered_embed.kernels import triton_rows

DIM, ROWS = 128, 16
EXACT = {
    "add.rn.f32",
    "sub.rn.f32",
    "mul.rn.f32",
    "div.rn.f32",
    "sqrt.rn.f32",
    "neg.f32",
    "abs.f32",
}


def test_interpreted_they_train_to_the_native_bits():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "support" / "interpreted_triton.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) > 18
    assert {tuple(same) for same in found.values()} == {(True, True)}, found


def arithmetic(
    program: Any, arguments: dict[str, str], constants: dict[str, Any], capability: int
) -> set[str]:
    """The floating-point instructions that ``program`` compiles to."""
    source = ASTSource(
        fn=program,
        signature=arguments | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
    )
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options={"enable_fp_fusion": False})
    assert len(made.asm["cubin"]) > 0
    names = re.findall(r"^\s*(?:@\S+\s+)?([a-z][\w.]*)\s", made.asm["ptx"], re.MULTILINE)
    moves = ("ld", "st", "mov", "selp", "setp", "cvt", "shfl")
    return {name for name in names if "f32" in name and not name.startswith(moves)}


APPLY = {
    "weights": "*fp32",
    "scratch": "*fp32",
    "state0": "*fp32",
    "state1": "*fp32",
    "rows": "*fp32",
    "slots": "*i64",
    "num_rows": "i32",
    "h": "*fp32",
}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", _native.optimizer_names())
def test_compiled_every_formula_rounds_as_written(kind, capability):
    for kind_of_weights, pointer in (
        ("float32", "*fp32"),
        ("float16", "*fp16"),
        ("bfloat16", "*i16"),
    ):
        constants = {"D": DIM, "ROWS": ROWS, "KIND": kind, "TYPE": kind_of_weights}
        constants |= {"KEEP": True, "L2": True}
        found = arithmetic(
            triton_rows.apply_rows, APPLY | {"weights": pointer}, constants, capability
        )
        assert found <= EXACT, found
        assert found >= {"mul.rn.f32", "sub.rn.f32"}


def test_compiled_sums_round_as_written():
    columns = {"D": DIM, "COLUMNS": DIM}
    common = {"sample_weights": "*fp32", "columns": "*i64"}
    strides = {"row_stride": "i32", "bags_per_feature": "i32"}
    programs = [
        (
            triton_rows.pool,
            {"weights": "*fp32", "slots": "*i64", "inverse": "*i32", "offsets": "*i64"}
            | common
            | {"means": "*i32", "out": "*fp32"}
            | strides,
            columns | {"WEIGHTED": True, "TYPE": "float32"},
        ),
        (
            triton_rows.sum_chunk,
            {"grad": "*fp32", "group": "*i32", "begins": "*i64", "ends": "*i64"}
            | {"bag_of": "*i64", "lengths": "*fp32"}
            | common
            | {"out": "*fp32"}
            | strides,
            columns | {"HAS_MEANS": True, "WEIGHTED": True},
        ),
        (
            triton_rows.add_chunks,
            {"rows": "*fp32", "hot": "*i64", "firsts": "*i64", "chunks": "*fp32"},
            columns,
        ),
        (
            triton_rows.condition_rows,
            {"rows": "*fp32", "occurrences": "*fp32", "squares": "*fp32", "num_rows": "i32"}
            | {"scalars": "*fp32"},
            {"D": DIM, "ROWS": ROWS, "BY_FREQUENCY": True, "SCALED": True}
            | {"CLIPPED": True, "NORM_CLIPPED": True},
        ),
        (
            triton_rows.dot_occurrences,
            {"weights": "*fp32", "slots": "*i64", "inverse": "*i32", "grad": "*fp32"}
            | {"bag_of": "*i64", "columns": "*i64", "out": "*fp32", "num_ids": "i32"}
            | strides,
            {"D": DIM, "ROWS": ROWS, "TYPE": "float32"},
        ),
    ]
    for program, arguments, constants in programs:
        assert arithmetic(program, arguments, constants, 90) <= EXACT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "computes on a GPU; on the CPU pass kernel='native'"),
    ],
)
def test_what_it_refuses(options, message):
    with pytest.raises(te.ConfigError, match=message):
        te.TieredEmbeddingBag(
            10,
            8,
            tiers=te.Tiers(hbm=4000),
            optimizer=te.optim.FTRL(lr=0.1),
            device="cpu",
            kernel="triton",
            **options,
        )

"""``bounds_check``: what happens to ids outside their table, what is said, and what is counted."""

import logging
from typing import Any

import pytest
import torch

import tiered_embed as te

ROWS, DIM = 10, 4
IDS = torch.tensor([3, 12, -1, -5, 9, 0])
OFFSETS = torch.tensor([0, 2, 3])
PLACED = torch.tensor([3, 0, 0, 9, 0])  # as "warning" looks IDS up, without the -1
PLACED_OFFSETS = torch.tensor([0, 2, 2])


def make(kind: Any = te.TieredEmbeddingBag, **options: Any) -> Any:
    given = {
        "tiers": te.Tiers(ddr="1MB"),
        "optimizer": te.optim.SGD(lr=0.1),
        "init": te.init.Uniform(-1, 1),
        "bounds_check": "warning",
        **options,
    }
    return kind(ROWS, DIM, **given)


def counts(module: Any, table: str = "table") -> tuple[int, int, int]:
    found = module.stats().bounds[table]
    return found.clamped, found.ignored, found.warned


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_warning_looks_up_row_0_and_leaves_pruned_ids_out(mode, caplog):
    with make(mode=mode) as module, make(mode=mode, bounds_check="raise") as twin:
        for training in (True, False):
            out = module.train(training)(IDS, OFFSETS)
            wanted = twin.train(training)(PLACED, PLACED_OFFSETS)
            assert torch.equal(out, wanted)
            assert not out[1].any()
            if training:
                out.square().sum().backward()
                wanted.square().sum().backward()
        assert module.digest() == twin.digest()
        assert counts(module) == (0, 2, 4)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert line.startswith(
        "2 ids of a batch are outside their tables, and row 0 is looked up instead: the first is "
        "id 12 at position 1, outside [0, 10) of table 'table'"
    )


def test_a_warning_does_what_fbgemms_does(imported):
    """Its CPU kernel replaces the same ids, and leaves -1 alone."""
    imported("fbgemm_gpu")
    ids, rows = IDS.clone(), torch.tensor([ROWS])
    mode = 1  # BoundsCheckMode.WARNING
    torch.ops.fbgemm.bounds_check_indices(
        rows, ids, torch.tensor([0, 2, 3, 6]), mode, torch.zeros(1, dtype=torch.int64)
    )
    assert ids.tolist() == [3, 0, -1, 0, 9, 0]
    kept = ids >= 0
    assert ids[kept].tolist() == PLACED.tolist()


def test_without_pooling_pruned_ids_get_zeros():
    with make(te.TieredEmbedding) as module, make(te.TieredEmbedding) as twin:
        out, wanted = module(IDS.view(2, 3)), twin(PLACED)
        kept = IDS != -1
        assert torch.equal(out.view(-1, DIM)[kept], wanted)
        assert not out[0, 2].any()
        out.sum().backward()
        wanted.sum().backward()
        assert module.digest() == twin.digest()
        assert counts(module) == (0, 1, 2)
        assert counts(twin) == (0, 0, 0)


def test_row_0_may_be_the_padding_row():
    with make(padding_idx=0) as module, make(padding_idx=0) as twin:
        out = module(IDS, OFFSETS)
        wanted = twin(torch.tensor([3, 9]), torch.tensor([0, 1, 1]))
        assert torch.equal(out, wanted)
        assert counts(module) == (0, 1, 2)


@pytest.mark.parametrize(
    ("check", "wanted"), [("clamp", (3, 0, 0)), ("ignore", (0, 3, 0)), ("warning", (0, 1, 2))]
)
@pytest.mark.parametrize("kind", [te.TieredEmbeddingBag, te.TieredEmbedding])
def test_ids_are_counted_once_a_forward(check, wanted, kind, caplog):
    args = (IDS, OFFSETS) if kind is te.TieredEmbeddingBag else (IDS,)
    with make(kind, bounds_check=check, lookahead=3, depth=1) as module:
        assert counts(module) == (0, 0, 0)
        module.lookups(*args)
        module.rows([1])
        assert counts(module) == (0, 0, 0), "nothing was looked up"
        given = args if len(args) > 1 else args[0]
        for i, _ in enumerate(te.prefetch([0] * 5, module, ids=lambda _: {module: given})):
            module(*args).sum().backward()
            # Batches ahead of the loop do not count yet.
            assert counts(module) == tuple(n * (i + 1) for n in wanted)
        assert module.stats().unmatched == 0
        module.eval()
        for _ in te.prefetch([0], module, ids=lambda _: {module: given}):
            module(*args)
        module(*args)
        assert counts(module) == tuple(n * 7 for n in wanted)
        good = torch.tensor([0, 9])
        module(*((good, torch.tensor([0])) if len(args) > 1 else (good,)))
        assert counts(module) == tuple(n * 7 for n in wanted)
        clamped, ignored, warned = (n * 7 for n in wanted)
        assert module.stats().as_dict()["bounds"] == {
            "table": {"clamped": clamped, "ignored": ignored, "warned": warned}
        }
    assert len(caplog.records) == (check == "warning")


def test_tables_are_counted_apart(caplog):
    tables = [
        te.TableConfig("a", 5, DIM, ["x", "y"]),
        te.TableConfig("b", 8, DIM, ["y"]),
        te.TableConfig("any", None, DIM, ["y"]),
    ]
    with te.TieredEmbeddingBagCollection(
        tables,
        tiers=te.Tiers(ddr="1MB"),
        optimizer=te.optim.SGD(lr=0.1),
        bounds_check="warning",
    ) as module:
        module({"x": torch.tensor([[1, 5]]), "y": torch.tensor([[6, 8]])})
        assert [counts(module, t.name)[2] for t in tables] == [3, 1, 0]
    assert "4 ids of a batch" in caplog.text
    assert "id 5 at position 1, outside [0, 5) of table 'a'" in caplog.text

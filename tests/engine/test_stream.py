"""The stream: a batch is checked once, and a forward that presents another one is told so."""

import logging
from typing import Any

import pytest
import torch

import tiered_embed as te
from small import ROWS, make, random_ids
from tiered_embed.engine import Engine, JaggedLayout
from tiered_embed.optim import SGD

STEPS = 80
TABLES = [te.TableConfig("a", 60, 4), te.TableConfig("b", 60, 8), te.TableConfig("c", 60, 4)]


@pytest.fixture
def checks(monkeypatch) -> list[int]:
    """A list that grows with every check of a batch."""
    made: list[int] = []
    for cls in (Engine, JaggedLayout):
        real = cls.check

        def check(self, *given, real=real):
            batch = real(self, *given)
            made.extend([1] if batch is not None else [])
            return batch

        monkeypatch.setattr(cls, "check", check)
    return made


def collection(**options: Any) -> te.TieredEmbeddingBagCollection:
    return te.TieredEmbeddingBagCollection(
        TABLES, tiers=te.Tiers(ddr="1MiB"), optimizer=SGD(lr=0.1), num_threads=1, **options
    )


def mapping(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {
        t.name: (random_ids(seed + k, 9), torch.tensor([0, 4, 4])) for k, t in enumerate(TABLES)
    }


def lookups(module: Any) -> int:
    return sum(table.lookups for table in module.stats().tables.values())


# --- once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("form", ["2-D", "offsets", "weights", "padding"])
def test_a_prefetched_batch_is_checked_once(form, dtype, checks):
    batches = [random_ids(n, 12).to(dtype) for n in range(STEPS)]
    offsets = torch.tensor([0, 5, 5])
    args = {
        "2-D": lambda ids: (ids.reshape(4, 3),),
        "offsets": lambda ids: (ids, offsets.clone()),
        "weights": lambda ids: (ids, offsets.clone(), torch.rand(12)),
        "padding": lambda ids: (ids, offsets.clone()),
    }[form]
    given = [args(ids) for ids in batches]
    padding = {"padding_idx": 3} if form == "padding" else {}
    with make(**padding) as module, make(**padding) as plain:
        for one in te.prefetch(given, module, ids=lambda one: {module: one}):
            module(*one).sum().backward()
        assert len(checks) == STEPS
        for one in given:
            plain(*one).sum().backward()
        assert module.digest() == plain.digest()
        assert module.stats().unmatched == 0
        assert lookups(module) == lookups(plain)


def test_a_prefetched_mapping_is_checked_once(checks):
    given = [mapping(n) for n in range(STEPS)]
    with collection() as module, collection() as plain:
        for one in te.prefetch(given, module, ids=lambda one: {module: one}):
            torch.cat(list(module(one).values()), dim=1).sum().backward()
        assert len(checks) == STEPS
        assert module.stats().unmatched == 0
        for one in given:
            torch.cat(list(plain(one).values()), dim=1).sum().backward()
        assert module.digest() == plain.digest()
        assert lookups(module) == lookups(plain)


def test_a_copy_of_the_batch_is_known_by_its_content(checks):
    batches = [random_ids(n) for n in range(STEPS)]
    with make() as module:
        for ids in te.prefetch(batches, module, ids=lambda ids: {module: ids}):
            module(ids.clone()).sum().backward()
        assert module.stats().unmatched == 0
    assert len(checks) == 2 * STEPS  # what the forward got had to be checked


def test_weights_that_train_take_part_in_the_graph():
    ids, offsets = random_ids(0, 6), torch.tensor([0, 2])
    weights = torch.rand(6, requires_grad=True)
    with make() as module:
        for _ in te.prefetch([0], module, ids=lambda _: {module: (ids, offsets, weights)}):
            module(ids, offsets, weights).sum().backward()
        assert module.stats().unmatched == 0
    assert weights.grad is not None
    assert weights.grad.abs().sum() > 0


# --- gaps -----------------------------------------------------------------------------------------


def another(ids: torch.Tensor) -> torch.Tensor:
    return (ids + 7) % ROWS


def subset(ids: torch.Tensor) -> torch.Tensor:
    return ids[:4]


def reordered(ids: torch.Tensor) -> torch.Tensor:
    return ids.flip(0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (another, "got 18 other ids"),
        (subset, "was shown 18 ids, and the forward got 12"),
        (reordered, "in another order"),
    ],
)
def test_a_gap_is_told_once_counted_and_trained(change, why, caplog):
    batches = [random_ids(n) for n in range(30)]
    odd = {4, 5, 17}
    caplog.set_level(logging.WARNING, logger="tiered_embed")
    given = [change(ids) if n in odd else ids for n, ids in enumerate(batches)]
    with make() as module, make() as plain:
        loop = te.prefetch(range(30), module, ids=lambda n: {module: batches[n]})
        for n in loop:
            module(given[n]).sum().backward()
        for ids in given:
            plain(ids).sum().backward()
        assert module.digest() == plain.digest()
        assert module.stats().unmatched == len(odd)
        # Counts are those of the forwards; what was prefetched in vain is in none.
        ours, theirs = module.stats().tables["table"], plain.stats().tables["table"]
        assert (ours.lookups, ours.unique) == (theirs.lookups, theirs.unique)
        assert ours.hits + ours.misses == ours.unique
    told = [
        record.getMessage() for record in caplog.records if "te.prefetch" in record.getMessage()
    ]
    assert len(told) == 1
    assert why in told[0]
    assert "'table'" in told[0]


def test_features_in_another_order_match_by_name():
    """The mapping's order is not the tables'; the same ids under their names are the same batch."""
    given = [mapping(n) for n in range(12)]
    with collection() as module:
        for one in te.prefetch(given, module, ids=lambda one: {module: one}):
            out = module(dict(reversed(one.items())))
            torch.cat(list(out.values()), dim=1).sum().backward()
        assert module.stats().unmatched == 0


def test_swapped_features_are_a_gap(caplog):
    given = [mapping(n) for n in range(12)]
    caplog.set_level(logging.WARNING, logger="tiered_embed")
    with collection() as module:
        for n, one in enumerate(te.prefetch(given, module, ids=lambda one: {module: one})):
            if n == 5:
                one = {"a": one["c"], "b": one["b"], "c": one["a"]}
            torch.cat(list(module(one).values()), dim=1).sum().backward()
        assert module.stats().unmatched == 1
        assert lookups(module) == 12 * 27
    assert len([r for r in caplog.records if "te.prefetch" in r.getMessage()]) == 1


def test_a_buffer_that_changed_after_it_was_pulled_is_a_gap(caplog):
    """The forward trains what the tensor holds now, checked again."""
    buffer = random_ids(0)
    caplog.set_level(logging.WARNING, logger="tiered_embed")
    with make() as module, make() as plain:
        for _ in te.prefetch([0], module, ids=lambda _: {module: buffer}):
            buffer.copy_(another(buffer))
            module(buffer).sum().backward()
        plain(buffer).sum().backward()
        assert module.digest() == plain.digest()
        assert module.stats().unmatched == 1
        for _ in te.prefetch([0], module, ids=lambda _: {module: buffer}):
            buffer[0, 0] = ROWS
            with pytest.raises(te.IdRangeError):
                module(buffer)


def test_a_second_forward_of_a_batch_is_a_gap(caplog):
    batches = [random_ids(n) for n in range(6)]
    caplog.set_level(logging.WARNING, logger="tiered_embed")
    with make() as module:
        for ids in te.prefetch(batches, module, ids=lambda ids: {module: ids}):
            (module(ids) * module(ids)).sum().backward()
        assert module.stats().unmatched == 6
        assert lookups(module) == 2 * 6 * 18
    (told,) = [r.getMessage() for r in caplog.records if "te.prefetch" in r.getMessage()]
    assert "an earlier forward" in told


def test_batches_that_no_forward_takes_are_in_no_count():
    batches = [random_ids(n) for n in range(20)]
    with make() as module:
        for n, ids in enumerate(te.prefetch(batches, module, ids=lambda ids: {module: ids})):
            if n == 13:
                break
            if n % 3:
                module(ids).sum().backward()
        used = sum(n % 3 > 0 for n in range(13))
        counts = module.stats().tables["table"]
        assert counts.lookups == used * 18
        assert counts.unique == sum(
            len(ids.unique()) for n, ids in enumerate(batches[:13]) if n % 3
        )
        assert module.stats().unmatched == 0


def test_evaluation_in_the_middle_of_a_loop_takes_no_ticket():
    batches = [random_ids(n) for n in range(8)]
    with make() as module, make() as plain:
        for ids in te.prefetch(batches, module, ids=lambda ids: {module: ids}):
            with torch.no_grad():
                module(ids)
            module(ids).sum().backward()
        for ids in batches:
            plain(ids).sum().backward()
        assert module.digest() == plain.digest()
        assert module.stats().unmatched == 0


# --- an engine without a module -------------------------------------------------------------------


def test_an_engine_needs_no_module():
    from tiered_embed.engine import Presented, feature_of
    from tiered_embed.spec import EngineOptions

    options = EngineOptions(te.Tiers(ddr="1MiB"), SGD(lr=0.1), num_threads=1)
    engine = Engine([te.TableConfig("table", ROWS, 4)], [("table", 0)], options)
    ids = random_ids(1)
    build = lambda: engine.check([feature_of("ids", ids, None, None)])  # noqa: E731
    out, _ = engine.forward(Presented((ids, None, None)), build, training=True)
    out.sum().backward()
    with make(optimizer=SGD(lr=0.1)) as module:
        module(ids).sum().backward()
        assert engine.digest() == module.digest()
    engine.close()

"""When rows are updated: summed and non-finite gradients, several forwards, max_norm."""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tiered_embed as te
from small import DIM, EVERY, ROWS, TIERS, make, random_ids
from tiered_embed.optim.adagrad import RowWiseAdagrad
from tiered_embed.optim.adam import Adam
from tiered_embed.optim.descent import LARSSGD, SGD

# --- te.accumulate --------------------------------------------------------------------------------


def parts_with_a_row_each() -> list[torch.Tensor]:
    """Micro batches; a row comes once in each, and in several of them."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randperm(ROWS, generator=generator)[:18].view(6, 3) for _ in range(4)]


def gradient_of(part: int) -> torch.Tensor:
    return torch.randn(6, DIM, generator=torch.Generator().manual_seed(part))


@pytest.mark.parametrize("optimizer", [SGD(lr=0.3), Adam(lr=0.3), LARSSGD(lr=0.3)])
def test_accumulated_parts_are_one_big_batch_bit_for_bit(optimizer):
    parts = parts_with_a_row_each()
    with make(optimizer=optimizer) as emb, make(optimizer=optimizer) as big:
        for _ in range(2):
            rows = emb.weight
            with te.accumulate(emb):
                for i, part in enumerate(parts):
                    emb(part).backward(gradient_of(i))
                    assert torch.equal(emb.weight, rows)
            big(torch.cat(parts)).backward(torch.cat([gradient_of(i) for i in range(4)]))
        assert emb.digest() == big.digest()
        assert emb.stats().steps == big.stats().steps == 2


def test_accumulated_parts_are_near_a_float64_reference(tmp_path):
    weights = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    tiers = te.Tiers(ddr=5 * 8 * DIM, ssd=tmp_path, store="memory")
    with make(optimizer=te.optim.Adagrad(lr=0.2, eps=1e-6), tiers=tiers) as emb:
        emb.load_rows(EVERY, weights)
        torchs = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=weights.double())
        optimizer = torch.optim.Adagrad(torchs.parameters(), lr=0.2, eps=1e-6)
        for step in range(3):
            with te.accumulate(emb):
                for part in range(4):
                    ids = random_ids(10 * step + part)
                    emb(ids).sin().sum().backward()
                    torchs(ids).sin().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(emb.weight.double(), torchs.weight.detach(), rtol=0, atol=2e-6)


TABLES = [te.TableConfig("narrow", ROWS, 4), te.TableConfig("wide", ROWS, 8, ["x", "y"], "mean")]


def collection(tiers: te.Tiers = TIERS, **options: Any) -> te.TieredEmbeddingBagCollection:
    options = {"optimizer": RowWiseAdagrad(lr=0.2), "num_threads": 1, **options}
    return te.TieredEmbeddingBagCollection(TABLES, tiers=tiers, **options)


def given(seed: int) -> dict[str, Any]:
    return {name: random_ids(3 * seed + i) for i, name in enumerate(["narrow", "x", "y"])}


@pytest.mark.parametrize("micro", [1, 3])
def test_accumulation_does_not_depend_on_tiers_threads_or_prefetch(micro, tmp_path):
    digests = set()
    settings = itertools.product([200, 900, 2**20], [1, 3], [True, False])
    for i, (ddr, threads, prefetch) in enumerate(settings):
        tiers = te.Tiers(ddr=ddr, ssd=tmp_path / str(i), store="memory")
        with collection(tiers, num_threads=threads, lookahead=4) as module:
            batches: Any = [given(seed) for seed in range(9)]
            if prefetch:
                batches = te.prefetch(batches, module, ids=lambda b, m=module: {m: b})
            loop = iter(batches)
            for _ in range(9 // micro):
                with te.accumulate(module):
                    for batch in itertools.islice(loop, micro):
                        torch.cat(list(module(batch).values()), 1).sin().sum().backward()
            assert list(loop) == []
            assert module.stats().steps == 9 // micro
            digests.add(module.digest())
    assert len(digests) == 1


def test_an_exception_drops_the_sums():
    with make() as emb, make() as twin:
        backward = emb(random_ids(0)).sum().backward
        with pytest.raises(KeyError), te.accumulate(emb):
            raise KeyError(backward())
        assert emb.stats().steps == 0
        for module in (emb, twin):
            with te.accumulate(module):
                module(random_ids(1)).sum().backward()
            module(random_ids(2)).sum().backward()
        assert emb.digest() == twin.digest()


def test_accumulation_is_not_nested():
    with make() as emb, make() as twin:
        for module in (emb, twin):
            with te.accumulate(module):
                module(random_ids(0)).sum().backward()
                if module is emb:
                    message = "accumulated already"
                    with pytest.raises(te.ConfigError, match=message), te.accumulate(module):
                        pass
                module(random_ids(1)).sum().backward()
        assert emb.stats().steps == 1
        assert emb.digest() == twin.digest()


def test_accumulating_nothing_is_no_step():
    with make() as emb:
        digest = emb.digest()
        with te.accumulate(emb):
            emb(random_ids(0))
        with te.accumulate(emb):
            pass
        assert emb.digest() == digest
        assert emb.stats().steps == 0


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "allow"])
def test_a_sum_that_is_not_finite_updates_nothing(on_nonfinite, caplog):
    """Each backward is finite; what they sum to is not."""
    with collection(on_nonfinite=on_nonfinite) as module:
        torch.cat(list(module(given(0)).values()), 1).sum().backward()
        digest, failed = module.digest(), False
        try:
            with te.accumulate(module):
                for _ in range(4):
                    out = module(given(1))
                    (out["narrow"].sum() + 3e38 * out["x"][0].sum()).backward()
        except te.NonFiniteError:
            failed = True
        assert failed == (on_nonfinite == "raise")
        assert (module.digest() == digest) == (on_nonfinite != "allow")
        assert module.stats().skipped == (on_nonfinite == "skip")
        assert module.stats().steps == 1 + (on_nonfinite == "allow")


def test_accumulating_with_a_scaler_gives_the_same_bits():
    digests = []
    for scale in (None, 2.0**12):
        with make() as emb:
            scaler = scale and torch.amp.GradScaler("cpu", init_scale=scale)
            rows = te.lr_optimizer(emb, grad_scaler=scaler or None)
            for step in range(3):
                with te.accumulate(emb):
                    for part in range(3):
                        loss = emb(random_ids(3 * step + part)).sin().sum()
                        (scaler.scale(loss) if scaler else loss).backward()
                if scaler:
                    scaler.step(rows)
                    scaler.update()
            digests.append(emb.digest())
    assert digests[0] == digests[1]


# --- gradients that are not finite ----------------------------------------------------------------

BAD: dict[str, Callable[[dict[str, torch.Tensor]], torch.Tensor]] = {
    "NaN in the narrow pool": lambda out: out["narrow"][2, 1] * float("nan"),
    "infinity in the wide pool": lambda out: out["y"][0, 7] * float("-inf"),
    "a sum that overflows": lambda out: 1e38 * (out["narrow"][:4] * torch.ones(4)).sum(),
}


def with_one_row_in_four_bags(seed: int) -> dict[str, Any]:
    return {**given(seed), "narrow": torch.tensor([[1], [1], [1], [1], [2], [3]])}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "allow"])
def test_a_gradient_that_is_not_finite_is_seen_before_any_row_changes(name, on_nonfinite, caplog):
    with collection(on_nonfinite=on_nonfinite) as module, collection() as twin:
        for m in (module, twin):
            torch.cat(list(m(given(0)).values()), 1).sum().backward()
        digest, failed = module.digest(), 0
        for _ in range(2):
            out = module(with_one_row_in_four_bags(1))
            loss = BAD[name](out) + sum(o.sum() for o in out.values())
            try:
                loss.backward()
            except te.NonFiniteError:
                failed += 1
        assert failed == (2 if on_nonfinite == "raise" else 0)
        assert module.stats().skipped == (2 if on_nonfinite == "skip" else 0)
        assert module.stats().steps == (3 if on_nonfinite == "allow" else 1)
        assert len(caplog.records) == (on_nonfinite == "skip"), "said once"
        if on_nonfinite == "allow":
            assert module.digest() != digest
            return
        assert module.digest() == digest
        for m in (module, twin):
            torch.cat(list(m(given(2)).values()), 1).sum().backward()
        assert module.digest() == twin.digest()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_gradient_that_no_row_gets_may_be_anything(mode):
    """Of an empty bag, of one of padding, of one of ids that are ignored."""
    options = {"mode": mode, "padding_idx": 0, "bounds_check": "ignore"}
    ids, offsets = torch.tensor([3, 4, 0, 0, 99]), torch.tensor([0, 2, 2, 4])
    digests = []
    for value in (0.0, float("nan"), float("inf")):
        with make(**options) as emb:
            out = emb(ids, offsets)
            grad = torch.ones_like(out)
            grad[1:] = value
            out.backward(grad)
            assert emb.stats().steps == 1
            assert emb.rows(EVERY).isfinite().all()
            digests.append(emb.digest())
    assert digests[0] == digests[1] == digests[2]


def test_weights_that_make_a_gradient_infinite():
    with make() as emb:
        digest = emb.digest()
        weights = torch.full((1, 2), 1e30)
        for factor in (1e30, float("inf")):
            with pytest.raises(te.NonFiniteError):
                (factor * emb(torch.tensor([[1, 2]]), None, weights)).sum().backward()
        assert emb.digest() == digest
        (1e7 * emb(torch.tensor([[1, 2]]), None, weights)).sum().backward()
        assert emb.stats().steps == 1


# --- several forwards of one loss -----------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [SGD(lr=1.0), Adam(lr=0.1)])
@pytest.mark.parametrize("accumulating", [False, True])
def test_weights_get_their_gradient_at_the_rows_that_the_forward_read(
    optimizer, accumulating, tmp_path
):
    """Whichever backward comes first, and updates the rows of the other."""
    tiers = te.Tiers(ddr=8 * 12 * DIM, ssd=tmp_path, store="memory")
    ids = [random_ids(0), random_ids(0).flip(0), random_ids(1)]
    with make(optimizer=optimizer, tiers=tiers) as emb, make(optimizer=optimizer) as twin:
        for module in (emb, twin):
            module.load_rows(EVERY, torch.ones(ROWS, DIM) * torch.arange(ROWS)[:, None])
        torchs = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=emb.weight.detach().clone())
        ours, theirs = ([torch.ones(6, 3, requires_grad=True) for _ in ids] for _ in range(2))
        context = te.accumulate(emb) if accumulating else contextlib.nullcontext()
        with context:
            outputs = [emb(i, None, w) for i, w in zip(ids, ours, strict=True)]
            sum(out.sum() for out in outputs).backward()
        sum(torchs(i, None, w).sum() for i, w in zip(ids, theirs, strict=True)).backward()
        for mine, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad, wanted.grad)
        with te.accumulate(twin):  # the rows themselves: one step with the sum
            for i in ids:
                twin(i).sum().backward()
        assert emb.stats().steps == 1
        assert emb.digest() == twin.digest()


# --- max_norm -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
def test_rows_that_a_forward_scaled_stay_whatever_the_tier(backwards, tmp_path):
    """Without a backward, too; and where one failed."""
    digests, rows = set(), []
    for i, ddr in enumerate((3 * 8 * DIM, 2**20)):
        tiers = te.Tiers(ddr=ddr, ssd=tmp_path / str(i), store="memory")
        with make(tiers=tiers, max_norm=0.5, optimizer=RowWiseAdagrad(lr=0.1)) as emb:
            emb.load_rows(EVERY, torch.ones(ROWS, DIM))
            for seed in range(8):
                out = emb(random_ids(seed, 2, 2))
                if backwards:
                    with pytest.raises(te.NonFiniteError):
                        (out * float("nan")).sum().backward()
                del out
            used = torch.cat([random_ids(seed, 2, 2).view(-1) for seed in range(8)]).unique()
            wanted = torch.ones(ROWS, DIM)
            wanted[used] = 0.25
            torch.testing.assert_close(emb.weight, wanted)
            assert emb.stats().steps == 0
            rows.append(emb.weight)
            digests.add(emb.digest())
    assert torch.equal(*rows)
    assert len(digests) == 1


def test_evaluation_with_max_norm_scales_copies(tmp_path):
    tiers = te.Tiers(ddr=3 * 4 * DIM, ssd=tmp_path, store="memory")
    with make(tiers=tiers, max_norm=0.5, optimizer=SGD(lr=0.1)) as emb:
        emb.load_rows(EVERY, torch.ones(ROWS, DIM))
        digest = emb.digest()
        ids = random_ids(0, 4, 1)
        with torch.no_grad():
            quiet = emb(ids)
        assert torch.equal(emb.eval()(ids), quiet)
        torch.testing.assert_close(quiet, torch.full((4, DIM), 0.25))
        assert emb.digest() == digest
        assert torch.equal(emb.weight, torch.ones(ROWS, DIM))
        assert torch.equal(emb.train()(ids), quiet)

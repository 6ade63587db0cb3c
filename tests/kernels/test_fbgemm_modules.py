"""A module over an HBM tier with FBGEMM's kernels, on the CPU: what it does, and what it refuses.

``test_fbgemm.py`` tests the arithmetic.
"""

import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tiered_embed as te
from reference import Table
from running import record_bytes
from small import DIM, EVERY, ROWS, make, random_ids
from tiered_embed.optim.adagrad import Adagrad, RowWiseAdagrad
from tiered_embed.optim.base import Optimizer
from tiered_embed.optim.descent import SGD
from tiered_embed.tiers.moves import Copies


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """FBGEMM's threads spin: with other tests running, each would wait for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- one module's protocols -----------------------------------------------------------------------

TIERS = te.Tiers(hbm=10 * 4 * DIM * 2, ddr=10 * 4 * DIM * 2)


def small(**options: Any) -> Any:
    """As ``small.make``, with a part of the rows in HBM."""
    options = {"tiers": TIERS, "optimizer": SGD(lr=0.5), "depth": 0, **options}
    return make(device="cpu", kernel="fbgemm", **options)


def in_ddr(**options: Any) -> Any:
    """The same under the native kernels."""
    return make(**{"optimizer": SGD(lr=0.5), **options})


SHAPES: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {
    "one bag": (torch.tensor([3, 4, 3]), torch.tensor([0])),
    "one bag of one": (torch.tensor([[7]]), None),
    "one empty bag": (torch.empty(0, dtype=torch.int64), torch.tensor([0])),
    "empty bags": (torch.tensor([1, 2]), torch.tensor([0, 0, 1, 2, 2])),
    "bags of none": (torch.empty(3, 0, dtype=torch.int64), None),
    "no bags": (torch.empty(0, 3, dtype=torch.int64), None),
    "no bags, offsets": (torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)),
    "32 bits": (torch.tensor([[1, 2], [3, 1]], dtype=torch.int32), None),
}


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_of_bags_trains_and_evaluates(shape: str, mode: str) -> None:
    ids, offsets = SHAPES[shape]
    with small(mode=mode) as emb, in_ddr(mode=mode) as twin:
        for module in (emb, twin):
            module(random_ids(0)).sin().sum().backward()
        for training in (True, False):
            got, wanted = (m.train(training)(ids, offsets) for m in (emb, twin))
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
            if training:
                got.sin().sum().backward()
                wanted.sin().sum().backward()
        torch.testing.assert_close(emb.weight, twin.weight, rtol=1e-5, atol=1e-6)
        if mode == "sum":
            weights = torch.rand(ids.shape)
            ours, theirs = (weights.clone().requires_grad_() for _ in range(2))
            emb.train()(ids, offsets, ours).sin().sum().backward()
            twin.train()(ids, offsets, theirs).sin().sum().backward()
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ids", [(), (1,), (5,), (0,), (2, 3), (0, 3)])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.3), RowWiseAdagrad(lr=0.2), Adagrad(lr=0.1)])
def test_rows_without_bags(ids: tuple[int, ...], optimizer: Optimizer) -> None:
    options = {"optimizer": optimizer, "padding_idx": 3, "num_threads": 1}
    tiers = {"tiers": TIERS, "device": "cpu", "kernel": "fbgemm"}
    ours = te.TieredEmbedding(ROWS, DIM, **options, **tiers)
    theirs = te.TieredEmbedding(ROWS, DIM, **options, tiers=te.Tiers(ddr="1MiB"))
    with ours, theirs:
        for seed in range(4):
            drawn = random_ids(seed, *ids) if ids else torch.tensor(seed)
            got, wanted = ours(drawn), theirs(drawn)
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
            got.sin().sum().backward()
            wanted.sin().sum().backward()
            torch.testing.assert_close(ours.eval()(drawn), theirs.eval()(drawn))
            ours.train(), theirs.train()
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(ours.weight[3], torch.zeros(DIM))


def test_weights_get_torchs_gradient() -> None:
    with small() as emb:
        theirs = torch.nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=emb.weight.detach().clone())
        weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
        ours, wanted = (weights.clone().requires_grad_() for _ in range(2))
        emb(random_ids(4), None, ours).sin().sum().backward()
        theirs(random_ids(4), None, wanted).sin().sum().backward()
        torch.testing.assert_close(ours.grad, wanted.grad, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            emb.weight, theirs.weight.detach() - 0.5 * theirs.weight.grad, rtol=1e-5, atol=1e-6
        )


def test_weights_get_their_gradient_at_the_rows_that_the_forward_read() -> None:
    """Two forwards of one loss: the first backward changes rows of the other."""
    ids = [random_ids(0), random_ids(0).flip(0)]
    with small() as emb:
        emb.load_rows(EVERY, torch.ones(ROWS, DIM) * torch.arange(ROWS)[:, None])
        theirs = torch.nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=emb.weight.detach().clone())
        ours, wanted = ([torch.ones(6, 3, requires_grad=True) for _ in ids] for _ in range(2))
        sum(emb(i, None, w).sum() for i, w in zip(ids, ours, strict=True)).backward()
        sum(theirs(i, None, w).sum() for i, w in zip(ids, wanted, strict=True)).backward()
        for a, b in zip(ours, wanted, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_read_only_rows() -> None:
    weights = torch.randn(ROWS, DIM)
    for dtype in (torch.float32, torch.float16):
        with small(optimizer=None, dtype=dtype) as emb:
            emb.load_rows(EVERY, weights.to(dtype))
            digest = emb.digest()
            wanted = weights.to(dtype).float()[random_ids(1)].sum(1)
            got = emb(random_ids(1))
            assert got.dtype == dtype
            assert not got.requires_grad
            torch.testing.assert_close(got, wanted.to(dtype))
            for context in (torch.no_grad(), torch.inference_mode()):
                with context:
                    assert torch.equal(emb(random_ids(1)), got)
            assert torch.equal(emb(random_ids(1)), got)
            given = torch.rand(6, 3, requires_grad=True)
            emb(random_ids(1), None, given).float().sum().backward()
            wanted = weights.to(dtype).float()[random_ids(1)].sum(2)
            torch.testing.assert_close(given.grad, wanted, rtol=1e-3, atol=1e-3)
            assert emb.digest() == digest


def test_inference_between_steps_changes_nothing() -> None:
    with small() as emb, small() as twin:
        for seed in range(6):
            with torch.inference_mode():
                emb(random_ids(seed + 1))
            for module in (emb, twin):
                module(random_ids(seed)).sin().sum().backward()
        assert emb.digest() == twin.digest()


@pytest.mark.parametrize("leave", ["del", "no backward", "an error"])
def test_a_graph_that_is_dropped_releases_its_rows(leave: str) -> None:
    with small() as emb, small() as twin:
        for seed in range(12):
            out = emb(random_ids(seed, 4, 1))
            if leave == "an error":
                with pytest.raises(te.NonFiniteError):
                    (out * float("inf")).sum().backward()
            del out
            gc.collect()
        assert emb.stats().tiers["HBM"].overflow == 0
        for module in (emb, twin):
            module(random_ids(3)).sum().backward()
        assert torch.equal(emb.weight, twin.weight)


def test_what_a_lookup_leaves_for_its_update_ends_with_the_step() -> None:
    """FBGEMM's graph holds memory on the device; a checked batch may live longer than its step."""
    with small() as emb:
        out = emb(random_ids(0))
        step = out.grad_fn.step
        (looked_up,) = step.looked_up
        output = weakref.ref(looked_up.output)
        del looked_up
        out.sum().backward()
        gc.collect()
        assert step.looked_up == []
        assert output() is None
    with in_ddr() as emb:
        assert emb(random_ids(0)).grad_fn.step.looked_up == [None]


def test_the_learning_rate_is_that_of_the_backward() -> None:
    with small() as emb:
        before = emb.weight
        rows = te.lr_optimizer(emb)
        for lr in (0.5, 0.25, 0.0, 0.125):
            out = emb(torch.tensor([[1]]))
            rows.param_groups[0]["lr"] = lr
            out.sum().backward()
        torch.testing.assert_close(before[1] - emb.weight[1], torch.full((DIM,), 0.875))


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "allow"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e38])
def test_a_gradient_that_is_not_finite(on_nonfinite: str, value: float, caplog) -> None:
    """1e38: a row's sum alone overflows."""
    with small(on_nonfinite=on_nonfinite) as emb:
        emb(random_ids(0)).sum().backward()
        digest, failed = emb.digest(), False
        try:
            (value * emb(torch.tensor([[1], [1], [1], [1], [2]]))).sum().backward()
        except te.NonFiniteError:
            failed = True
        assert failed == (on_nonfinite == "raise")
        assert (emb.digest() == digest) == (on_nonfinite != "allow")
        assert emb.stats().steps == 1 + (on_nonfinite == "allow")
        assert emb.stats().skipped == (on_nonfinite == "skip")
        emb(random_ids(2)).sum().backward()
        assert (emb.digest() == digest) is False


def test_a_gradient_that_no_row_gets_may_be_anything() -> None:
    digests = set()
    for value in (0.0, float("nan"), float("inf")):
        for on_nonfinite in ("raise", "allow"):
            with small(padding_idx=0, on_nonfinite=on_nonfinite) as emb:
                out = emb(torch.tensor([3, 4, 0, 0]), torch.tensor([0, 2, 2]))
                grad = torch.ones_like(out)
                grad[1:] = value
                out.backward(grad)
                assert emb.stats().steps == 1
                assert emb.rows(EVERY).isfinite().all()
                digests.add(tuple(emb.weight[3:5].flatten().tolist()))
    assert len(digests) == 1


def test_a_scaler_finds_what_is_infinite() -> None:
    with small() as emb, small() as twin:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        rows = te.lr_optimizer(emb, grad_scaler=scaler)
        for seed in range(5):
            loss = emb(random_ids(seed)).sum()
            if seed == 2:
                digest = emb.digest()
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(rows)
            scaler.update()
            if seed == 2:
                assert emb.digest() == digest
                assert scaler.get_scale() == 2.0**9
            else:
                twin(random_ids(seed)).sum().backward()
        torch.testing.assert_close(emb.weight, twin.weight)
        assert emb.stats().steps == 4
        assert emb.stats().skipped == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_output_has_another_dtype(dtype: torch.dtype) -> None:
    with small(output_dtype=dtype) as emb, in_ddr(output_dtype=dtype) as twin:
        for seed in range(3):
            got, wanted = emb(random_ids(seed)), twin(random_ids(seed))
            assert got.dtype == dtype
            torch.testing.assert_close(got, wanted)
            got.sin().sum().backward()
            wanted.sin().sum().backward()
        assert emb.eval()(random_ids(3)).dtype == dtype
        torch.testing.assert_close(emb.weight, twin.weight, rtol=1e-2, atol=1e-2)


def test_autocast_changes_no_bit() -> None:
    with small() as emb, small() as twin:
        for seed in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                out = emb(random_ids(seed), None, torch.ones(6, 3))
                out.sum().backward()
            assert out.dtype == torch.float32
            twin(random_ids(seed), None, torch.ones(6, 3)).sum().backward()
        assert emb.digest() == twin.digest()


HOOKS = {
    "copies": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
    "on the CPU": torch.autograd.graph.save_on_cpu,
}


@pytest.mark.parametrize("hooks", HOOKS)
def test_hooks_on_saved_tensors_lose_no_update(hooks: str) -> None:
    with small() as emb, small() as twin:
        for seed in range(3):
            with HOOKS[hooks]():
                loss = emb(random_ids(seed)).sin().sum()
            loss.backward()
            twin(random_ids(seed)).sin().sum().backward()
        assert emb.digest() == twin.digest()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_activations_update_every_row_once(use_reentrant: bool) -> None:
    with small() as emb, in_ddr() as twin:
        for module in (emb, twin):
            for seed in range(3):
                x = torch.ones(1, requires_grad=True)
                out = checkpoint(
                    lambda ids, x, m=module: (m(ids) * x).sin(),
                    random_ids(seed),
                    x,
                    use_reentrant=use_reentrant,
                )
                out.sum().backward()
        assert emb.stats().steps == twin.stats().steps == 3
        torch.testing.assert_close(emb.weight, twin.weight, rtol=1e-5, atol=1e-6)


def test_default_device_and_dtype_are_the_callers_own() -> None:
    with torch.device("meta"):
        emb = small()
    with emb, small() as twin:
        torch.set_default_dtype(torch.float64)
        try:
            weights = torch.ones(6, 3, dtype=torch.float32, requires_grad=True)
            emb(random_ids(0), None, weights).float().sum().backward()
            assert weights.grad.dtype == torch.float32
        finally:
            torch.set_default_dtype(torch.float32)
        twin(random_ids(0), None, torch.ones(6, 3)).sum().backward()
        assert emb.digest() == twin.digest()


def test_torchs_switch_for_determinism_is_left_alone() -> None:
    for before in (False, True):
        torch.use_deterministic_algorithms(before, warn_only=before)
        try:
            with small() as emb:
                emb(random_ids(0)).sum().backward()
            assert torch.are_deterministic_algorithms_enabled() == before
            assert torch.is_deterministic_algorithms_warn_only_enabled() == before
        finally:
            torch.use_deterministic_algorithms(False)


# --- growth ---------------------------------------------------------------------------------------


GROWING: dict[str, tuple[Optimizer, str]] = {
    "no state": (SGD(lr=0.5), "float32"),
    "state": (RowWiseAdagrad(lr=0.1), "float32"),
    "float16": (Adagrad(lr=0.1), "float16"),
    "row by row": (Adagrad(lr=0.1, weight_decay=0.1, clip_row_norm=1.0), "float32"),
}


@pytest.mark.parametrize("kind", GROWING)
def test_growth_between_a_forward_and_its_backward_loses_nothing(kind: str, tmp_path) -> None:
    optimizer, storage = GROWING[kind]
    size = record_bytes(Table("t", DIM), optimizer, storage)
    digests, slots = [], []
    for hbm, folder in ((6, "small"), (1000, "large")):
        tiers = te.Tiers(hbm=hbm * size, ddr=4 * size, ssd=tmp_path / folder, store="memory")
        with small(tiers=tiers, optimizer=optimizer, dtype=getattr(torch, storage)) as emb:
            for seed in range(3):
                out = emb(random_ids(seed, 6, 1))
                slots.append(emb.engine.pools[0].upper.num_slots)
                held = emb(torch.arange(ROWS)[:, None])  # pinned at the same time
                slots.append(emb.engine.pools[0].upper.num_slots)
                out.sin().sum().backward()
                held.sin().sum().backward()
            digests.append(emb.digest())
    assert slots[0] < slots[1], "it grew"
    assert digests[0] == digests[1]


def test_a_restore_frees_the_memory_before_it_takes_as_much(tmp_path, monkeypatch) -> None:
    """A device may have no room for both, even where an output is held."""
    tiers = te.Tiers(hbm=10 * 8 * DIM, ddr=2000, ssd=tmp_path / "ssd", store="memory")
    with small(tiers=tiers, optimizer=Adagrad(lr=0.1)) as emb:
        emb(random_ids(0)).sin().sum().backward()
        te.checkpoint.save(emb, tmp_path / "saved", step=1)
        digest = emb.digest()
        held = emb(random_ids(1))
        tier = emb.engine.pools[0].upper
        zeros, seen = Copies.zeros, []

        def noticed(moves: Any, num_slots: int, *args: Any) -> torch.Tensor:
            if num_slots:
                seen.append(sum(len(a) for a in (tier.weights, *tier.state.values())))
                seen.extend(m.weights_host.numel() for m in fbgemm_modules(emb))
            return zeros(moves, num_slots, *args)

        monkeypatch.setattr(Copies, "zeros", noticed)
        te.checkpoint.load(emb, tmp_path / "saved")
        assert seen
        assert not any(seen)
        assert emb.digest() == digest
        with pytest.raises(te.TieredEmbedError):
            held.sum().backward()
        emb(random_ids(2)).sum().backward()


def fbgemm_modules(emb: Any) -> list[Any]:
    """Of the pools that were there before a restore."""
    kernel = emb.engine.pools[0].kernel
    return [kernel._bags._module, kernel._rows._module]


# --- what cannot be -------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        type(optimizer).__name__: (
            {"optimizer": optimizer},
            rf"on cpu has no {type(optimizer).__name__}; it has SGD, .*; pass kernel='native'",
        )
        for optimizer in (
            te.optim.Adam(lr=0.1),
            te.optim.AdamW(lr=0.1),
            te.optim.PartialRowWiseAdam(lr=0.1),
            te.optim.LAMB(lr=0.1),
            te.optim.PartialRowWiseLAMB(lr=0.1),
            te.optim.LARSSGD(lr=0.1),
            te.optim.FTRL(lr=0.1),
            te.optim.MomentumSGD(lr=0.1),
            te.optim.RowWiseRMSProp(lr=0.1),
        )
    },
    "max": ({"mode": "max"}, "not by max; pass kernel='native'"),
    "bfloat16": ({"dtype": torch.bfloat16}, "no bfloat16 rows; it has float32, float16; pass"),
    "int8": ({"dtype": torch.int8, "optimizer": None}, "no int8 rows; .*pass kernel='native'"),
    "dim": (
        {"embedding_dim": 6},
        "needs a dim that is a multiple of 4, not 6; pass kernel='native'",
    ),
    "rounding": ({"rounding": "stochastic", "dtype": torch.float16}, "not 'stochastic'; pass"),
}


def threads() -> set[str]:
    return {t.name for t in threading.enumerate()}


def construct(tmp_path: Any, **options: Any) -> Any:
    options = {
        "num_embeddings": ROWS,
        "embedding_dim": 8,
        "tiers": te.Tiers(hbm=2000, ddr=2000, ssd=tmp_path),
        "optimizer": SGD(lr=0.1),
        "device": "cpu",
        "num_threads": 1,
        **options,
    }
    return te.TieredEmbeddingBag(**options)


@pytest.mark.parametrize("kernel", ["fbgemm", "auto"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_fbgemm_lacks_is_refused_and_native_has_it(what, kernel, tmp_path) -> None:
    options, message = REFUSED[what]
    before = threads()
    with pytest.raises(te.ConfigError, match=message):
        construct(tmp_path, kernel=kernel, **options)
    assert threads() == before
    assert not list(tmp_path.iterdir()), "nothing was made"
    with construct(tmp_path, kernel="native", **options) as module:
        out = module(random_ids(0))
        if out.requires_grad:
            out.sum().backward()


def test_a_pool_that_fails_closes_those_before_it(tmp_path) -> None:
    """The first pool can be, with its store; the second cannot."""
    tables = [te.TableConfig("a", 20, 8), te.TableConfig("b", 20, 6)]
    options = {
        "tiers": te.Tiers(hbm=4000, ddr=2000, ssd=tmp_path),
        "optimizer": SGD(lr=0.1),
        "device": "cpu",
        "num_threads": 1,
    }
    before = threads()
    for _ in range(2):
        with pytest.raises(te.ConfigError, match="not 6"):
            te.TieredEmbeddingBagCollection(tables, **options)
    assert threads() == before
    with te.TieredEmbeddingBagCollection(tables, kernel="native", **options) as module:
        module({"a": random_ids(0) % 20, "b": random_ids(1) % 20})["a"].sum().backward()


def absent(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


BROKEN = {
    "missing": (lambda patch: patch.setattr(metadata, "version", absent), "is not installed; pip"),
    "unfit": (
        lambda patch: patch.setattr(torch, "__version__", "2.12.1"),
        "do not fit each other; install a tested",
    ),
    "not importable": (
        lambda patch: patch.setitem(sys.modules, "fbgemm_gpu", None),
        "cannot be imported",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_without_a_fitting_fbgemm_nothing_is_begun(how, tmp_path, monkeypatch) -> None:
    apply, message = BROKEN[how]
    before = threads()
    with monkeypatch.context() as patch:
        apply(patch)
        with pytest.raises(te.ConfigError, match=message):
            construct(tmp_path)
    assert threads() == before
    with construct(tmp_path) as module:
        module(random_ids(0)).sum().backward()


def test_no_room_in_hbm_is_a_capacity_error_and_leaves_nothing_open(tmp_path, monkeypatch) -> None:
    def full(*args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    before = threads()
    with monkeypatch.context() as patch:
        patch.setattr(Copies, "zeros", full)
        with pytest.raises(te.CapacityError, match=r"cpu has no room for 30 records .*'table'"):
            construct(tmp_path)
    assert threads() == before
    with construct(tmp_path) as module:
        module(random_ids(0)).sum().backward()

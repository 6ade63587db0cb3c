"""The modules' forward, backward and counts, against torch and against each other."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiered_embed as te
from tiered_embed.optim.adagrad import RowWiseAdagrad
from tiered_embed.optim.descent import SGD

ROWS, DIM = 50, 6
LR = 0.25


@pytest.fixture(params=[1, 2, 4], ids=lambda n: f"{n} threads")
def threads(request):
    return request.param


@pytest.fixture
def tiers(tmp_path):
    """A fifth of the rows fits."""
    return te.Tiers(ddr=10 * 4 * DIM, ssd=tmp_path / "store", store="memory")


def make_bag(tiers: te.Tiers, mode: str = "sum", **options: Any) -> te.TieredEmbeddingBag:
    options = {"optimizer": SGD(lr=LR), "num_threads": 1, **options}
    return te.TieredEmbeddingBag(ROWS, DIM, mode, tiers=tiers, **options)


def loaded(module: Any, dim: int = DIM, table: str | None = None) -> torch.Tensor:
    """Fills the module's rows; returns them as torch's weight, which asks for its gradient."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(ROWS, dim, generator=generator)
    module.load_rows(np.arange(ROWS), weight, table=table)
    return weight.clone().requires_grad_()


def ids_of(*shape: int, seed: int = 0, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, ROWS, shape, generator=generator).to(dtype)


def check_step(
    module: Any, weight: torch.Tensor, out: torch.Tensor, wanted: torch.Tensor, seed: int = 3
) -> None:
    """Both outputs agree, and so do the rows after one step of SGD."""
    assert out.dtype == torch.float32
    assert out.shape == wanted.shape
    torch.testing.assert_close(out, wanted)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    out.backward(grad)
    wanted.backward(grad)
    assert weight.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(module.rows(np.arange(ROWS)), weight - LR * weight.grad)


# --- TieredEmbeddingBag ---------------------------------------------------------------------------

OFFSETS = {
    "bags": [0, 3, 9, 14],
    "empty bags": [0, 0, 4, 4, 20, 20],
    "one bag": [0],
    "bags of one": list(range(20)),
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("name", OFFSETS)
def test_a_bag_is_torchs(name, mode, dtype, threads, tiers):
    with make_bag(tiers, mode, num_threads=threads) as module:
        weight = loaded(module)
        ids, offsets = ids_of(20, dtype=dtype), torch.tensor(OFFSETS[name], dtype=dtype)
        wanted = functional.embedding_bag(ids.long(), weight, offsets.long(), mode=mode)
        check_step(module, weight, module(ids, offsets), wanted)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_two_dimensional_ids_are_bags_of_one_size(mode, tiers):
    with make_bag(tiers, mode) as module:
        weight = loaded(module)
        ids = ids_of(5, 4)
        check_step(module, weight, module(ids), functional.embedding_bag(ids, weight, mode=mode))
        assert module(ids_of(4, 5).t()).shape == (5, DIM)
        assert module(torch.empty(3, 0, dtype=torch.int64)).tolist() == [[0.0] * DIM] * 3


def test_arguments_have_torchs_names(tiers):
    with make_bag(tiers) as module:
        ids, offsets = ids_of(6), torch.tensor([0, 2])
        torch.testing.assert_close(module(input=ids, offsets=offsets), module(ids, offsets))


def test_two_dimensional_ids_need_not_be_contiguous(tiers):
    with make_bag(tiers) as module:
        weight = loaded(module)
        ids = ids_of(4, 5).t()
        wanted = functional.embedding_bag(ids.contiguous(), weight, mode="sum")
        check_step(module, weight, module(ids), wanted)
        strided = ids_of(40)[::2]
        out = module(strided, torch.tensor([0, 7]))
        torch.testing.assert_close(out, module(strided.clone(), torch.tensor([0, 7])))


def test_the_last_offset_included(tiers):
    with make_bag(tiers, include_last_offset=True) as module:
        weight = loaded(module)
        ids, offsets = ids_of(9), torch.tensor([0, 2, 2, 9])
        wanted = functional.embedding_bag(
            ids, weight, offsets, mode="sum", include_last_offset=True
        )
        check_step(module, weight, module(ids, offsets), wanted)


@pytest.mark.parametrize("shape", ["offsets", "2-D"])
def test_sample_weights_and_their_gradient(shape, threads, tiers):
    with make_bag(tiers, num_threads=threads) as module:
        weight = loaded(module)
        ids = ids_of(12) if shape == "offsets" else ids_of(4, 3)
        args = (torch.tensor([0, 5, 5, 7]),) if shape == "offsets" else (None,)
        generator = torch.Generator().manual_seed(1)
        ours = torch.randn(ids.shape, generator=generator).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        wanted = functional.embedding_bag(ids, weight, *args, mode="sum", per_sample_weights=theirs)
        check_step(module, weight, module(ids, *args, ours), wanted)
        assert ours.grad is not None
        assert ours.grad.shape == ids.shape
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_weights_that_were_computed_pass_their_gradient_on(tiers):
    with make_bag(tiers) as module:
        weight = loaded(module)
        ids, offsets = ids_of(6), torch.tensor([0, 2])
        scale, their_scale = (torch.tensor(1.5, requires_grad=True) for _ in range(2))
        ones = torch.ones(6)
        module(ids, offsets, scale * ones).sum().backward()
        wanted = functional.embedding_bag(
            ids, weight, offsets, mode="sum", per_sample_weights=their_scale * ones
        )
        wanted.sum().backward()
        torch.testing.assert_close(scale.grad, their_scale.grad)


def test_the_callers_tensors_may_be_reused_before_the_backward(tiers):
    with make_bag(tiers) as module, make_bag(te.Tiers(ddr="1MB")) as untouched:
        ids, offsets, weights = ids_of(6), torch.tensor([0, 2]), torch.ones(6)
        out = module(ids, offsets, weights)
        same = untouched(ids.clone(), offsets.clone(), weights.clone())
        for tensor in (ids, offsets, weights):
            tensor.fill_(1)
        out.sum().backward()
        same.sum().backward()
        assert module.digest() == untouched.digest()


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_an_empty_batch_is_a_step_without_rows(mode, tiers):
    with make_bag(tiers, mode) as module:
        train = module(ids_of(4), torch.tensor([0]))
        train.sum().backward()
        digest = module.digest()
        nothing = torch.empty(0, dtype=torch.int64)
        out = module(nothing, nothing)
        assert out.shape == (0, DIM)
        out.sum().backward()
        out = module(nothing, torch.tensor([0, 0, 0]))
        assert out.tolist() == [[0.0] * DIM] * 3
        out.sum().backward()
        assert module.digest() == digest
        assert module.stats().steps == 3
        module.eval()
        assert module(nothing, nothing).shape == (0, DIM)


# --- TieredEmbedding ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 2), (0,), (3, 0), ()])
def test_an_embedding_is_torchs(shape, threads, tiers):
    with te.TieredEmbedding(
        ROWS, DIM, tiers=tiers, optimizer=SGD(lr=LR), num_threads=threads
    ) as module:
        weight = loaded(module)
        ids = ids_of(*shape)
        check_step(module, weight, module(ids), functional.embedding(ids, weight))


def test_an_embedding_is_prefetched(tiers):
    batches = [ids_of(3, 2, seed=s) for s in range(9)]
    digests = []
    for prefetch in (False, True):
        ssd = tiers.ssd / str(prefetch)
        with te.TieredEmbedding(
            ROWS,
            DIM,
            tiers=te.Tiers(ddr=tiers.ddr, ssd=ssd, store="memory"),
            optimizer=SGD(lr=LR),
            lookahead=3,
        ) as module:
            loop = te.prefetch(batches, module, ids=lambda b: {module: b})
            for ids in loop if prefetch else batches:
                module(ids).square().sum().backward()
            digests.append(module.digest())
    assert digests[0] == digests[1]


# --- TieredEmbeddingBagCollection -----------------------------------------------------------------

TABLES = [
    te.TableConfig("user", ROWS, 3, ["viewer", "author"]),
    te.TableConfig("item", ROWS, 20, ["seen"], mode="mean"),
    te.TableConfig("hour", ROWS, 3),
]
DIMS = {"user": 3, "item": 20, "hour": 3}
FEATURES = {"viewer": "user", "author": "user", "seen": "item", "hour": "hour"}


def make_collection(tmp_path: Any, **options: Any) -> te.TieredEmbeddingBagCollection:
    options = {"optimizer": SGD(lr=LR), "num_threads": 2, **options}
    tiers = te.Tiers(ddr=900, ssd=tmp_path, store="memory")
    return te.TieredEmbeddingBagCollection(TABLES, tiers=tiers, **options)


def test_a_collection_is_torchs_bags(tmp_path):
    with make_collection(tmp_path) as module:
        weights = {name: loaded(module, dim, name) for name, dim in DIMS.items()}
        given: dict[str, Any] = {
            "viewer": (ids_of(7, seed=1), torch.tensor([0, 2, 2])),
            "author": ids_of(3, 2, seed=2),
            "seen": (ids_of(9, seed=3), torch.tensor([0, 1, 9])),
            "hour": (ids_of(4, seed=4), torch.tensor([0, 1, 2]), torch.randn(4)),
        }
        # Any order of features; the output has the tables'.
        out = module(dict(reversed(given.items())))
        assert list(out) == list(FEATURES)
        total, wanted_total = torch.zeros(()), torch.zeros(())
        for feature, table in FEATURES.items():
            args = given[feature] if isinstance(given[feature], tuple) else (given[feature],)
            ids, offsets, sample_weights = (*args, None, None)[:3]
            wanted = functional.embedding_bag(
                ids,
                weights[table],
                offsets,
                mode="mean" if table == "item" else "sum",
                per_sample_weights=sample_weights,
            )
            torch.testing.assert_close(out[feature], wanted)
            factor = torch.randn(wanted.shape)
            total = total + (factor * out[feature]).sum()
            wanted_total = wanted_total + (factor * wanted).sum()
        total.backward()
        wanted_total.backward()
        for table, weight in weights.items():
            with torch.no_grad():
                expected = weight - LR * weight.grad
            torch.testing.assert_close(module.rows(np.arange(ROWS), table), expected)


def test_a_backward_through_one_feature_alone_is_a_step(tmp_path):
    with make_collection(tmp_path) as module:
        weights = {name: loaded(module, dim, name) for name, dim in DIMS.items()}
        given = dict.fromkeys(FEATURES, (ids_of(4), torch.tensor([0, 2])))
        module(given)["seen"].sum().backward()
        assert module.stats().steps == 1
        torch.testing.assert_close(module.rows(np.arange(ROWS), "user"), weights["user"].detach())
        assert not torch.equal(module.rows(np.arange(ROWS), "item"), weights["item"].detach())


def test_a_feature_may_read_several_tables():
    tables = [te.TableConfig("a", ROWS, DIM, ["f", "g"]), te.TableConfig("b", ROWS, 3, ["f"])]
    tiers = te.Tiers(ddr="1MB")
    with te.TieredEmbeddingBagCollection(tables, tiers=tiers, optimizer=SGD(lr=LR)) as module:
        weights = {"a": loaded(module, DIM, "a"), "b": loaded(module, 3, "b")}
        f, g = ids_of(4, 2, seed=1), ids_of(4, 3, seed=2)
        out = module({"f": f, "g": g})
        assert list(out) == module.embedding_names == ["f@a", "g", "f@b"]
        wanted = {
            name: functional.embedding_bag(ids, weights[table], mode="sum")
            for name, ids, table in (("f@a", f, "a"), ("g", g, "a"), ("f@b", f, "b"))
        }
        torch.testing.assert_close(out, wanted)
        torch.stack([value.square().sum() for value in out.values()]).sum().backward()
        torch.stack([value.square().sum() for value in wanted.values()]).sum().backward()
        for table, weight in weights.items():
            assert weight.grad is not None
            torch.testing.assert_close(
                module.rows(range(ROWS), table), weight.detach() - LR * weight.grad
            )


def test_weights_are_needed_or_left_out_as_a_collection_is_told(tmp_path):
    given = dict.fromkeys(FEATURES, ids_of(4, 2))
    weighted = {**given, "hour": (ids_of(4, 2), None, torch.full((4, 2), 3.0))}
    with make_collection(tmp_path / "none", is_weighted=False) as module:
        torch.testing.assert_close(module(weighted), module(given))
    with (
        make_collection(tmp_path / "all", is_weighted=True) as module,
        pytest.raises(te.ConfigError, match="feature 'viewer' has no weights, but is_weighted"),
    ):
        module(weighted)


def test_the_dense_tables_of_a_replaced_collection_load(tmp_path):
    """Its keys have the table's own name; the tiered table's may have a path before it."""
    tables = [te.TableConfig("sparse.user", ROWS, DIM)]
    weight = torch.randn(ROWS, DIM)
    with te.TieredEmbeddingBagCollection(
        tables, tiers=te.Tiers(ddr="1MB"), optimizer=SGD(lr=LR)
    ) as module:
        module.load_state_dict({"embedding_bags.user.weight": weight})
        assert torch.equal(module.rows(range(ROWS)), weight)


@pytest.mark.filterwarnings("ignore")  # TorchRec's own
def test_a_keyed_jagged_tensor_gives_a_keyed_tensor(imported, tmp_path):
    torchrec = imported("torchrec")
    lengths = torch.tensor([2, 1, 0, 3, 1, 1, 2, 2])
    kjt = torchrec.KeyedJaggedTensor(
        keys=["hour", "seen", "viewer", "author"], values=ids_of(12), lengths=lengths
    )
    with make_collection(tmp_path) as module:
        out = module(kjt)
        assert out.keys() == list(FEATURES)
        jagged = kjt.to_dict()
        given = {k: (v.values(), v.offsets()[:-1]) for k, v in jagged.items()}
        for name, wanted in module(given).items():
            torch.testing.assert_close(out[name], wanted)


class Jagged:
    """What a KeyedJaggedTensor looks like to the checks."""

    def __init__(self, keys: list[str], values: torch.Tensor, lengths: torch.Tensor) -> None:
        self._keys, self._values = keys, values
        self._offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])

    def keys(self) -> list[str]:
        return self._keys

    def values(self) -> torch.Tensor:
        return self._values

    def offsets(self) -> torch.Tensor:
        return self._offsets

    def offset_per_key(self) -> list[int]:
        return self._offsets[:: (len(self._offsets) - 1) // len(self._keys)].tolist()

    def weights_or_none(self) -> None:
        return None


def test_a_keyed_jagged_tensor_is_taken_apart_by_key(tmp_path):
    """The ids that reach the rows, without TorchRec: its KeyedTensor is the output's alone."""
    keys = ["hour", "seen", "viewer", "author"]
    lengths = torch.tensor([2, 1, 0, 3, 1, 1, 2, 2])
    jagged = Jagged(keys, ids_of(12), lengths)
    starts = [0, *lengths.cumsum(0).tolist()]
    given = {}
    for k, key in enumerate(keys):
        ids = jagged.values()[starts[2 * k] : starts[2 * k + 2]]
        given[key] = (ids, torch.tensor([0, int(lengths[2 * k])]))
    with make_collection(tmp_path) as module:
        ours, wanted = (module.check(module.present(value)) for value in (jagged, given))
        for mine, theirs in zip(ours.segments, wanted.segments, strict=True):
            parts = [[(table, ids.tolist()) for table, ids in s.parts()] for s in (mine, theirs)]
            assert parts[0] == parts[1]
        bags = zip(module.engine.bags(ours), module.engine.bags(wanted), strict=True)
        for of_ours, of_wanted in bags:
            assert of_ours.offsets.tolist() == of_wanted.offsets.tolist()


def test_keys_of_no_table_are_left_alone(tmp_path):
    keys = ["other", "hour", "seen", "viewer", "author"]
    jagged = Jagged(keys, ids_of(12), torch.tensor([2, 0, 2, 1, 0, 1, 1, 1, 2, 2]))
    with make_collection(tmp_path) as module:
        batch = module.check(module.present(jagged))
        assert sum(segments.num_ids for segments in batch.segments) == 10


def test_prefetch_finds_the_ids_of_a_single_collection(tmp_path):
    """Batches that are, or have, a KeyedJaggedTensor need no ``ids=``."""
    with make_collection(tmp_path) as module:
        jagged = Jagged(["hour", "seen", "viewer", "author"], ids_of(8), torch.ones(8).long())

        class Batch:
            def __init__(self) -> None:
                self.features, self.labels = jagged, torch.zeros(2)

        model = torch.nn.Sequential(module)
        assert list(te.prefetch([jagged], model)) == [jagged]
        batch = Batch()
        assert list(te.prefetch([batch], model)) == [batch]
        with pytest.raises(
            te.ConfigError, match=r"of type int, has 0 KeyedJaggedTensors .*; pass ids="
        ):
            list(te.prefetch([3], model))
    with pytest.raises(
        te.ConfigError, match=r"the model has 0 tiered collections.*ids=lambda batch"
    ):
        te.prefetch([jagged], torch.nn.Linear(1, 1))


# --- training semantics ---------------------------------------------------------------------------


def test_rows_start_as_their_initial_values_and_reading_makes_none(tiers):
    init = te.init.Uniform(-2, 3)
    with make_bag(tiers, init=init, seed=5, name="n") as module:
        ids = np.array([0, 49, 7, 7], np.int64)
        wanted = te.init.reference(init, 5, "n", ids, DIM)
        empty = module.digest()
        assert np.array_equal(module.rows(ids).numpy(), wanted)
        module.eval()
        assert np.array_equal(module(torch.from_numpy(ids)[:, None]).numpy(), wanted)
        with torch.no_grad():
            module.train()(torch.from_numpy(ids)[:, None])
        module.train()
        out = module(torch.from_numpy(ids)[:, None])
        assert np.array_equal(out.detach().numpy(), wanted)
        del out
        assert module.digest() == empty, "staged rows were never materialised"


def test_loaded_rows_and_state_are_read_back(tiers):
    with make_bag(tiers, optimizer=RowWiseAdagrad(lr=LR)) as module:
        ids = torch.tensor([44, 3, 20])
        weights, state = torch.randn(3, DIM), torch.rand(3, 1)
        module.load_rows(ids, weights, {"sum": state})
        assert torch.equal(module.rows(ids), weights)
        assert torch.equal(module.optimizer_state(ids)["sum"], state)
        module.load_rows(ids[:1], weights[1:2])
        assert torch.equal(module.rows(ids), weights[[1, 1, 2]])
        assert module.optimizer_state(ids)["sum"].ravel().tolist() == [0, *state[1:].ravel()]
        # Copies: writing into them writes no row.
        module.rows(ids).zero_()
        assert torch.equal(module.rows(ids), weights[[1, 1, 2]])


def test_a_second_backward_says_why_it_cannot_be(tiers):
    with make_bag(tiers) as module:
        out = module(ids_of(3, 2))
        out.sum().backward(retain_graph=True)
        digest = module.digest()
        with pytest.raises(RuntimeError, match=r"updated already.*Call forward again"):
            out.sum().backward()
        assert module.digest() == digest
        assert module.stats().steps == 1


def test_two_uses_of_one_output_are_one_step(tiers):
    with make_bag(tiers) as module:
        weight = loaded(module)
        ids = ids_of(3, 2)
        out, wanted = module(ids), functional.embedding_bag(ids, weight, mode="sum")
        (out.square().sum() + 3 * out.sum()).backward()
        (wanted.square().sum() + 3 * wanted.sum()).backward()
        with torch.no_grad():
            torch.testing.assert_close(module.rows(np.arange(ROWS)), weight - LR * weight.grad)
        assert module.stats().steps == 1


def test_the_backward_of_two_forwards_is_one_step(tiers):
    """SGD is linear: both gradients were taken at the rows as they were."""
    with make_bag(tiers) as module:
        weight = loaded(module)
        one, two = ids_of(3, 2, seed=1), ids_of(3, 2, seed=2)
        (module(one).square().sum() + module(two).square().sum()).backward()
        bags = [functional.embedding_bag(ids, weight, mode="sum") for ids in (one, two)]
        sum(b.square().sum() for b in bags).backward()
        with torch.no_grad():
            torch.testing.assert_close(module.rows(np.arange(ROWS)), weight - LR * weight.grad)
        assert module.stats().steps == 1


def cyclic(out: torch.Tensor) -> None:
    """Leaves ``out`` to the garbage collector."""
    cycle: list[Any] = [out]
    cycle.append(cycle)


@pytest.mark.parametrize("leave", [lambda out: None, cyclic])
def test_a_graph_that_is_freed_without_a_backward_releases_its_rows(leave, tmp_path):
    tiers = te.Tiers(ddr=4 * 4 * DIM, ssd=tmp_path, store="memory")
    with make_bag(tiers) as module:
        for first in range(0, 40, 4):
            leave(module(torch.arange(first, first + 4)[:, None]))
            gc.collect()
        stats = module.stats().tiers["DDR"]
        assert stats.overflow == 0
        assert stats.written_back == 0
        held = [module(torch.arange(first, first + 4)[:, None]) for first in range(0, 12, 4)]
        assert module.stats().tiers["DDR"].overflow == 8, "what is held is pinned"
        held.clear()
        gc.collect()
        for first in range(0, 40, 4):
            module(torch.arange(first, first + 4)[:, None]).sum().backward()
        assert module.stats().tiers["DDR"].overflow == 8


def test_evaluation_leaves_no_mark_on_residency(tiers):
    with make_bag(tiers) as module:

        def counts() -> list[dict[str, Any]]:
            stats = module.stats()
            every = [stats.tiers["DDR"], stats.tiers["SSD"], stats.tables["table"]]
            return [{**vars(c), "stall_s": 0} for c in every]

        for seed in range(4):
            module(ids_of(3, 2, seed=seed)).sum().backward()
        module.engine.pools[0].scheduler.quiesce()  # a write that is under way is counted
        before = counts()
        module.eval()
        for seed in range(4, 12):
            out = module(ids_of(3, 2, seed=seed))
            assert not out.requires_grad
        module.train()
        with torch.inference_mode():
            module(ids_of(3, 2, seed=12))
        assert counts() == before


def test_the_output_follows_the_models_dtype(tiers):
    with make_bag(tiers) as module:
        model = torch.nn.Sequential(module, torch.nn.Linear(DIM, 1))
        ids = ids_of(3, 2, seed=1)
        for convert, dtype in (
            (model.bfloat16, torch.bfloat16),
            (model.cpu, torch.bfloat16),
            (model.double, torch.float64),
            (model.float, torch.float32),
        ):
            convert()
            out = model(ids)
            assert out.dtype == dtype
            out.sum().backward()
            assert module.rows([0]).dtype == torch.float32
        assert module.stats().steps == 4
        with pytest.raises(te.ConfigError, match="computes on cpu, as its tiers decide"):
            module.to("meta")


def test_there_is_nothing_for_an_optimizer_and_little_for_a_state_dict(tiers):
    with make_bag(tiers) as module:
        (touched,) = module.parameters()
        assert touched.shape == (0, module.embedding_dim)
        assert list(module.named_parameters(recurse=False)) == []
        (state,) = module.state_dict().values()
        assert str(tiers.ssd) in bytes(state.tolist()).decode()
        assert "ddr=240 bytes" in repr(module)


# --- stats ----------------------------------------------------------------------------------------


def test_stats_add_up(tmp_path):
    with make_collection(tmp_path) as module:
        num_ids, unique = dict.fromkeys(DIMS, 0), dict.fromkeys(DIMS, 0)
        for seed in range(10):
            given = {f: ids_of(3, 4, seed=100 * seed + i) for i, f in enumerate(FEATURES)}
            for table in DIMS:
                mine = torch.cat([given[f].ravel() for f, t in FEATURES.items() if t == table])
                num_ids[table] += len(mine)
                unique[table] += len(mine.unique())
            torch.cat(list(module(given).values()), dim=1).sum().backward()
        stats = module.stats()
        assert stats.steps == 10
        assert set(stats.tiers) == {"DDR", "SSD"}
        ddr = stats.tiers["DDR"]
        sizes = {name: 4 * dim for name, dim in DIMS.items()}
        for name, counts in stats.tables.items():
            assert counts.lookups == num_ids[name]
            assert counts.unique == unique[name]
            assert counts.hits == counts.unique - counts.misses
            assert counts.staged == counts.misses
            assert counts.written_back <= counts.evicted <= counts.staged
            assert counts.bytes_in == counts.staged * sizes[name]
            assert counts.bytes_out == counts.written_back * sizes[name]
        for field in (
            *("lookups", "unique", "misses", "hits", "staged", "evicted", "written_back"),
            *("overflow", "bytes_in", "bytes_out"),
        ):
            assert getattr(ddr, field) == sum(getattr(c, field) for c in stats.tables.values())
        assert ddr.stall_s == pytest.approx(sum(c.stall_s for c in stats.tables.values()))
        assert ddr.budget_bytes == 900
        assert 0 < ddr.slot_bytes <= 900
        assert ddr.resident == ddr.staged - ddr.evicted
        plain = stats.as_dict()
        keys = [
            "steps",
            "tiers",
            "tables",
            "skipped",
            "phases",
            "depth",
            "unmatched",
            "evaluation",
            "bounds",
        ]
        assert list(plain) == keys
        assert plain["unmatched"] == 0
        assert plain["tables"]["item"]["misses"] == stats.tables["item"].misses
        # What SSD was asked for is what DDR missed, and it gets what DDR writes back.
        assert stats.tiers["SSD"].lookups == ddr.misses
        assert stats.tiers["SSD"].staged == ddr.written_back
        module.flush()
        after = module.stats()
        assert after.tiers["SSD"].staged == after.tiers["DDR"].written_back > ddr.written_back
        assert after.tiers["SSD"].bytes_in == after.tiers["DDR"].bytes_out
        for name in ("step", "wait", "lookup", "update"):
            assert after.phases[name].count == 10 - (name == "step")
            assert 0 < after.phases[name].p50_s <= after.phases[name].p99_s
        assert after.phases["plan"].count == 2 * 10


def test_whole_tables_miss_once_per_row():
    with make_bag(te.Tiers(ddr=ROWS * 4 * DIM)) as module:
        for seed in range(20):
            module(ids_of(6, 4, seed=seed)).sum().backward()
        counts = module.stats().tables["table"]
        assert counts.misses == len(torch.cat([ids_of(6, 4, seed=s) for s in range(20)]).unique())
        assert counts.evicted == 0
        assert counts.overflow == 0


@pytest.mark.parametrize("store", ["rocksdb", "rocksdb_py", "memory"])
def test_close_flushes_and_the_next_module_goes_on(store, stores, tmp_path):
    if store not in stores:
        pytest.skip("built without RocksDB")
    tiers = te.Tiers(ddr=10 * 4 * (2 * DIM + DIM), ssd=tmp_path / "tiered", store=store)
    plenty = te.Tiers(ddr="1MB")
    adam = te.optim.Adam(lr=LR)  # its step count must go on, too

    def train(module: te.TieredEmbeddingBag, seeds: range) -> None:
        for seed in seeds:
            module(ids_of(3, 4, seed=seed)).square().sum().backward()

    with make_bag(plenty, optimizer=adam) as dense:
        train(dense, range(9))
        with make_bag(tiers, optimizer=adam) as first:
            train(first, range(5))
            first.flush()
        with make_bag(tiers, optimizer=adam) as second:
            assert second.stats().steps == 5
            train(second, range(5, 9))
            assert second.digest() == dense.digest()
            assert torch.equal(second.rows(np.arange(ROWS)), dense.rows(np.arange(ROWS)))


@pytest.mark.parametrize("make", [make_bag, te.TieredEmbedding])
def test_threads_change_no_bit(make, threads, tmp_path):
    """Rows with thousands of occurrences are shared between threads."""
    kind: Callable[..., Any] = make
    ids = torch.cat([torch.full((9000,), 7), ids_of(3000), torch.full((700,), 9)]).reshape(-1, 4)
    digests = []
    for folder, num_threads in (("one", 1), ("more", threads)):
        options = {"optimizer": RowWiseAdagrad(lr=LR), "num_threads": num_threads}
        tiers = te.Tiers(ddr=2000, ssd=tmp_path / folder, store="memory")
        args = (tiers,) if make is make_bag else (ROWS, 33)
        options = options if make is make_bag else {**options, "tiers": tiers}
        with kind(*args, **options) as module:
            for seed in range(3):
                out = module(ids)
                out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)))
            digests.append(module.digest())
    assert len(set(digests)) == 1


def test_a_module_that_fails_to_open_leaves_the_step_count_of_its_other_pools(tmp_path) -> None:
    adam = te.optim.Adam(lr=0.1)
    tables = [te.TableConfig("narrow", 10, 4), te.TableConfig("wide", 10, 8)]
    batch = {name: (torch.tensor([1, 2]), torch.tensor([0])) for name in ("narrow", "wide")}

    def collection() -> te.TieredEmbeddingBagCollection:
        tiers = te.Tiers(ddr="1MiB", ssd=tmp_path)
        return te.TieredEmbeddingBagCollection(tables, tiers=tiers, optimizer=adam)

    with collection() as emb:
        for _ in range(3):
            sum(out.sum() for out in emb(batch).values()).backward()
    held = te.TieredEmbedding(
        10, 8, tiers=te.Tiers(ddr="1MiB", ssd=tmp_path), optimizer=adam, name="wide"
    )
    with held, pytest.raises(te.StoreError, match="already open"):
        collection()
    narrow = te.TieredEmbedding(
        10, 4, tiers=te.Tiers(ddr="1MiB", ssd=tmp_path), optimizer=adam, name="narrow"
    )
    with narrow:
        assert narrow.stats().steps == 3

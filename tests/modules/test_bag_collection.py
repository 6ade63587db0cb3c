"""``te.TieredEmbeddingBagCollection``: as TorchRec's ``EmbeddingBagCollection``, with batches whose
keys have batch sizes of their own, and with features that are missing."""

import tempfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiered_embed as te

ROWS, LR = 20, 0.1
TIERS = te.Tiers(ddr="1MiB")
EVERY = range(ROWS)
Tables = list[tuple[str, int, list[str], str]]  # name, dim, features, mode

pytestmark = pytest.mark.filterwarnings("ignore")  # TorchRec's own


@pytest.fixture(scope="module")
def torchrec(imported) -> Any:
    return imported("torchrec")


def make(tables: Tables, tiers: te.Tiers = TIERS, **options: Any) -> Any:
    given = {"optimizer": te.optim.SGD(lr=LR), "init": te.init.Uniform(-1, 1), **options}
    configs = [te.TableConfig(n, ROWS, dim, features, mode) for n, dim, features, mode in tables]
    return te.TieredEmbeddingBagCollection(configs, tiers=tiers, **given)


def pair(torchrec: Any, tables: Tables, *, is_weighted: bool = False, **options: Any) -> Any:
    """Ours and TorchRec's, with the same rows."""
    theirs = torchrec.EmbeddingBagCollection(
        [
            torchrec.EmbeddingBagConfig(
                name=name,
                embedding_dim=dim,
                num_embeddings=ROWS,
                feature_names=list(features),
                pooling=torchrec.PoolingType[mode.upper()],
            )
            for name, dim, features, mode in tables
        ],
        is_weighted=is_weighted,
    )
    module = make(tables, is_weighted=is_weighted, **options)
    for name, bag in theirs.embedding_bags.items():
        module.load_rows(EVERY, bag.weight.detach(), table=name)
    return module, theirs


def same(ours: Any, wanted: Any) -> None:
    assert type(ours) is type(wanted)
    assert ours.keys() == wanted.keys()
    assert ours.offset_per_key() == wanted.offset_per_key()
    assert ours.values().dtype == wanted.values().dtype
    torch.testing.assert_close(ours.values(), wanted.values())


def train(module: Any, theirs: Any, batches: list[Any], *, prefetch: bool = True) -> None:
    """Both, batch by batch; raises unless outputs and rows agree."""
    optimizer = torch.optim.SGD(theirs.parameters(), lr=LR)
    for batch in te.prefetch(batches, module) if prefetch else batches:
        ours, wanted = module(batch), theirs(batch)
        same(ours, wanted)
        optimizer.zero_grad()
        for out in (ours, wanted):
            factor = torch.linspace(-1, 1, out.values().numel()).view_as(out.values())
            (out.values() * factor).sum().backward()
        optimizer.step()
    for name, bag in theirs.embedding_bags.items():
        torch.testing.assert_close(module.rows(EVERY, name), bag.weight.detach())


# --- TorchRec's own tests -------------------------------------------------------------------------

OFFSETS = [0, 2, 2, 3, 4, 5, 8]
CASES: dict[str, tuple[Tables, list[str]]] = {
    "unweighted": ([("t1", 3, ["f1"], "sum"), ("t2", 4, ["f2"], "sum")], ["f1", "f2"]),
    "shared tables": ([("t1", 3, ["f1", "f2"], "sum")], ["f1", "f2"]),
    "shared features": ([("t1", 3, ["f1"], "sum"), ("t2", 4, ["f1"], "mean")], ["f1"]),
}


@pytest.mark.parametrize("case", CASES)
def test_names_and_places_are_torchrecs(case, torchrec):
    tables, keys = CASES[case]
    features = torchrec.KeyedJaggedTensor.from_offsets_sync(
        keys=keys, values=torch.arange(8), offsets=torch.tensor(OFFSETS)
    )
    module, theirs = pair(torchrec, tables)
    with module:
        same(module(features=features), theirs(features=features))
        assert module.is_weighted() is theirs.is_weighted() is False
        assert module.device == theirs.device
        configs = zip(module.embedding_bag_configs(), theirs.embedding_bag_configs(), strict=True)
        for mine, other in configs:
            for field in ("name", "num_embeddings", "embedding_dim"):
                assert getattr(mine, field) == getattr(other, field)
            assert list(mine.feature_names) == other.feature_names


def test_weights_are_torchrecs(torchrec):
    tables: Tables = [("t1", 3, ["f1", "f3"], "sum"), ("t2", 4, ["f2"], "sum")]
    features = torchrec.KeyedJaggedTensor.from_offsets_sync(
        keys=["f1", "f3", "f2"],
        values=torch.tensor([1, 2, 4, 5, 4, 3, 2, 9, 1, 3, 4, 7]),
        offsets=torch.tensor([0, 2, 4, 6, 8, 10, 12]),
        weights=torch.tensor([0.1, 0.2, 0.4, 0.5, 0.4, 0.3, 0.2, 0.9, 0.1, 0.3, 0.4, 0.7]),
    )
    module, theirs = pair(torchrec, tables, is_weighted=True)
    with module:
        train(module, theirs, [features] * 3)


def test_a_name_twice_is_refused_as_by_torchrec(torchrec):
    tables: Tables = [("t1", 3, ["f1"], "sum"), ("t1", 4, ["f2"], "sum")]
    with pytest.raises(ValueError, match="Duplicate table name t1"):
        pair(torchrec, tables)
    with pytest.raises(ValueError, match="table 't1' is configured twice"):
        make(tables)


# --- a batch size per key -------------------------------------------------------------------------


def deduplicated(
    torchrec: Any,
    strides: dict[str, list[int]],
    samples: int | None,
    seed: int,
    *,
    weighted: bool = False,
) -> Any:
    """Keys with ``strides`` bags of each rank. ``samples``: how many draw from these."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {key: sum(ranks) for key, ranks in strides.items()}
    lengths = torch.randint(0, 4, (sum(sizes.values()),), generator=generator)
    total = int(lengths.sum())
    inverse = None
    if samples is not None:
        rows = [torch.randint(0, n, (samples,), generator=generator) for n in sizes.values()]
        order = torch.randperm(len(rows), generator=generator).tolist()
        inverse = [list(sizes)[i] for i in order], torch.stack([rows[i] for i in order])
    return torchrec.KeyedJaggedTensor(
        keys=list(sizes),
        values=torch.randint(0, ROWS, (total,), generator=generator),
        lengths=lengths,
        weights=torch.rand(total, generator=generator) if weighted else None,
        stride_per_key_per_rank=list(strides.values()),
        inverse_indices=inverse,
    )


@settings(deadline=None, derandomize=True, print_blob=True, max_examples=80)
@given(data=st.data())
def test_drawn_batch_sizes_train_as_torchrecs(data, torchrec):
    draw = data.draw
    names = ["a", "b", "c"]
    weighted = draw(st.booleans())
    tables: Tables = [
        (
            f"t{i}",
            draw(st.sampled_from([3, 5])),
            draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)),
            "sum" if weighted else draw(st.sampled_from(["sum", "mean"])),
        )
        for i in range(draw(st.integers(1, 3)))
    ]
    keys = draw(st.permutations([*names, "unused"]))
    num_ranks, samples = draw(st.integers(1, 2)), draw(st.integers(1, 7))
    strides = {
        key: draw(st.lists(st.integers(1, 4), min_size=num_ranks, max_size=num_ranks))
        for key in keys
    }
    seed = draw(st.integers(0, 99))
    batches = [
        deduplicated(torchrec, strides, samples, seed + i, weighted=weighted) for i in range(4)
    ]
    with tempfile.TemporaryDirectory() as folder:
        tiers = te.Tiers(ddr=4 * 8 * 30, ssd=folder, store="memory")
        options = {"tiers": tiers} if draw(st.booleans()) else {}
        module, theirs = pair(
            torchrec, tables, is_weighted=weighted, lookahead=2, depth=1, **options
        )
        with module:
            train(module, theirs, batches, prefetch=draw(st.booleans()))
            assert module.stats().unmatched == 0


def test_batch_sizes_per_key_that_are_equal_need_no_inverse(torchrec):
    tables: Tables = [("t1", 3, ["a"], "sum"), ("t2", 4, ["b"], "mean")]
    strides = {"b": [2, 1], "other": [5, 0], "a": [1, 2]}
    module, theirs = pair(torchrec, tables)
    with module:
        train(module, theirs, [deduplicated(torchrec, strides, None, i) for i in range(3)])


def test_inverse_indices_of_a_plain_batch_apply(torchrec):
    """TorchRec applies them whatever the batch sizes."""
    tables: Tables = [("t1", 3, ["a"], "sum"), ("t2", 4, ["b"], "mean")]
    batches = [
        torchrec.KeyedJaggedTensor(
            keys=["a", "b"],
            values=torch.arange(6),
            lengths=torch.tensor([1, 2, 0, 3]),
            inverse_indices=(["b", "a"], torch.tensor([[1, 0, 1], [0, 0, 1]])),
        )
    ]
    module, theirs = pair(torchrec, tables)
    with module:
        train(module, theirs, batches * 2)
        module.eval()
        with torch.no_grad():
            same(module(batches[0]), theirs(batches[0]))


def test_a_maximum_of_a_batch_size_per_key(torchrec):
    """TorchRec has no maximum: as ``nn.EmbeddingBag`` has it."""
    tables: Tables = [("t1", 3, ["a"], "max"), ("t2", 4, ["b"], "max")]
    batch = deduplicated(torchrec, {"a": [2], "b": [4]}, 5, 3)
    names, inverse = batch.inverse_indices()
    with make(tables) as module:
        parts = []
        for name, dim, (feature,), mode in tables:
            weight = module.rows(EVERY, name)
            bag = nn.EmbeddingBag(ROWS, dim, mode=mode, include_last_offset=True, _weight=weight)
            jagged = batch[feature]
            pooled = bag(jagged.values(), jagged.offsets())
            parts.append(pooled[inverse[names.index(feature)]])
        torch.testing.assert_close(module(batch).values(), torch.cat(parts, 1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inverse_indices": None}, te.ConfigError, r"batch sizes \{'a': 2, 'b': 3\}.*pass them"),
        (
            {"inverse_indices": (["a", "b"], torch.tensor([[0, 1], [0, 3]]))},
            te.IdRangeError,
            "name bag 3 of feature 'b' for sample 1, but it has 3 bags",
        ),
        (
            {"inverse_indices": (["a", "b"], torch.tensor([[-1, 1], [0, 2]]))},
            te.IdRangeError,
            "name bag -1 of feature 'a' for sample 0",
        ),
        (
            {"inverse_indices": (["a"], torch.tensor([[0, 1]]))},
            te.ConfigError,
            r"no row for the features \['b'\]",
        ),
        (
            {"inverse_indices": (["a", "b"], torch.tensor([0, 1]))},
            te.ConfigError,
            r"shape \(2,\) for 2 keys",
        ),
        (
            {"inverse_indices": (["a", "b"], torch.rand(2, 2))},
            te.ConfigError,
            r"dtype torch\.float32",
        ),
        (
            {"stride_per_key_per_rank": [[2], [2]]},
            te.ConfigError,
            r"has 5 bags, but its 2 keys have batch sizes \[2, 2\]",
        ),
    ],
    ids=["none", "past the end", "negative", "no row", "one dim", "floats", "fewer bags"],
)
def test_batch_sizes_that_do_not_fit_change_nothing(change, error, message, torchrec):
    given = {
        "keys": ["a", "b"],
        "values": torch.arange(5),
        "lengths": torch.ones(5, dtype=torch.int64),
        "offsets": torch.arange(6),
        "stride_per_key_per_rank": [[2], [3]],
        "inverse_indices": (["a", "b"], torch.tensor([[0, 1], [0, 2]])),
        "length_per_key": [2, 3],
    }
    with make([("t1", 3, ["a"], "sum"), ("t2", 4, ["b"], "mean")]) as module:
        assert module(torchrec.KeyedJaggedTensor(**given)).values().shape == (2, 7)
        before = module.stats().tiers["DDR"].lookups
        with pytest.raises(error, match=message):
            module(torchrec.KeyedJaggedTensor(**{**given, **change}))
        assert module.stats().tiers["DDR"].lookups == before


# --- features that are missing --------------------------------------------------------------------

TWO: Tables = [("t1", 3, ["a", "b"], "sum"), ("t2", 4, ["b"], "mean"), ("t3", 3, ["c"], "max")]


@pytest.mark.parametrize("given", [["a"], ["c", "b"], ["b", "x"], ["a", "b", "c"]])
def test_a_missing_feature_has_empty_bags(given, torchrec):
    """As a batch that has the feature, without ids."""
    lengths = {"a": [2, 0, 1], "b": [0, 3, 1], "c": [1, 1, 1], "x": [1, 0, 2]}
    ids = {name: torch.arange(sum(n)) + 2 for name, n in lengths.items()}

    def batch(names: list[str], empty: list[str]) -> Any:
        numbers = [lengths[n] for n in names] + [[0, 0, 0] for _ in empty]
        return torchrec.KeyedJaggedTensor(
            keys=[*names, *empty],
            values=torch.cat([ids[n] for n in names]),
            lengths=torch.tensor(numbers).reshape(-1),
        )

    missing = [name for name in ("a", "b", "c") if name not in given]
    partial, full = batch(given, []), batch(given, missing)
    mapping = {
        n: (ids[n], torch.tensor([0, *lengths[n]]).cumsum(0)[:-1]) for n in given if n != "x"
    }
    with make(TWO, missing_features="empty") as module, make(TWO) as other:
        for _ in range(2):
            out = module(partial)
            same(out, other(full))
            for name, part in module(mapping).items():
                torch.testing.assert_close(part, out[name])
            out.values().sum().backward()
            other(full).values().sum().backward()
        assert module.digest() == other.digest()
        list(te.prefetch([partial] * 3, module))
        for each in te.prefetch([partial] * 3, module):
            module(each).values().sum().backward()
            other(full).values().sum().backward()
        assert module.stats().unmatched == 0
        assert module.digest() == other.digest()
    if missing:
        with make(TWO) as module, pytest.raises(te.ConfigError, match="missing_features='empty'"):
            module(partial)


def test_every_feature_may_be_missing(torchrec):
    none = torchrec.KeyedJaggedTensor(
        keys=["x"], values=torch.arange(3), lengths=torch.tensor([1, 2])
    )
    no_keys = torchrec.KeyedJaggedTensor(
        keys=[], values=torch.empty(0, dtype=int), lengths=torch.empty(0, dtype=int), stride=4
    )
    with make(TWO, missing_features="empty") as module:
        for batch, num_bags in ((none, 2), (no_keys, 4)):
            out = module(batch)
            assert torch.equal(out.values(), torch.zeros(num_bags, 13))
            out.values().sum().backward()
        with pytest.raises(te.ConfigError, match=r"no feature is given, .* number of bags"):
            module({})


def test_a_missing_feature_of_a_deduplicated_batch(torchrec):
    batch = deduplicated(torchrec, {"a": [1], "c": [4]}, 5, 1)
    with make(TWO, missing_features="empty") as module:
        out = module(batch)
        names, inverse = batch.inverse_indices()
        for name, table in (("a", "t1"), ("c", "t3")):
            mode = "sum" if name == "a" else "max"
            weight = module.rows(EVERY, table)
            bag = nn.EmbeddingBag(ROWS, 3, mode=mode, include_last_offset=True, _weight=weight)
            pooled = bag(batch[name].values(), batch[name].offsets())
            torch.testing.assert_close(out[name], pooled[inverse[names.index(name)]])
        assert out.keys() == ["a", "b@t1", "b@t2", "c"]
        assert torch.equal(out["b@t2"], torch.zeros(5, 4))
        out.values().sum().backward()


def test_a_missing_feature_without_pooling_has_no_ids(torchrec):
    tables = [te.TableConfig("t1", ROWS, 3, ["a", "b"]), te.TableConfig("t2", ROWS, 3, ["c"])]
    batch = torchrec.KeyedJaggedTensor(
        keys=["c"], values=torch.arange(3), lengths=torch.tensor([1, 2])
    )
    with te.TieredEmbeddingCollection(
        tables,
        tiers=TIERS,
        optimizer=te.optim.SGD(lr=LR),
        missing_features="empty",
        need_indices=True,
    ) as module:
        out = module(batch)
        assert list(out) == ["a", "b", "c"]
        assert out["a"].values().shape == (0, 3)
        assert out["a"].lengths().tolist() == [0, 0]
        assert out["a"].weights().tolist() == []
        assert out["c"].weights().tolist() == [0, 1, 2]
        sum(part.values().sum() for part in out.values()).backward()
        out = module({"a": torch.ones(2, 2, dtype=torch.int32)})
        shapes = {name: tuple(part.shape) for name, part in out.items()}
        assert shapes == {"a": (2, 2, 3), "b": (0, 3), "c": (0, 3)}


def test_collections_without_pooling_leave_inverse_indices_alone(torchrec):
    config = torchrec.EmbeddingConfig(
        name="t", embedding_dim=3, num_embeddings=ROWS, feature_names=["a", "b"]
    )
    theirs = torchrec.EmbeddingCollection([config])
    with te.TieredEmbeddingCollection(
        [te.TableConfig("t", ROWS, 3, ["a", "b"])], tiers=TIERS, optimizer=te.optim.SGD(lr=LR)
    ) as module:
        module.load_rows(EVERY, theirs.embeddings["t"].weight.detach())
        for samples in (None, 6):
            batch = deduplicated(torchrec, {"b": [2, 1], "a": [1, 4]}, samples, 2)
            ours, wanted = module(batch), theirs(batch)
            for name, part in wanted.items():
                assert torch.equal(ours[name].values(), part.values())
                assert torch.equal(ours[name].lengths(), part.lengths())


def test_an_unknown_choice_is_refused():
    with pytest.raises(te.ConfigError, match="missing_features is 'zeros'; choose one of raise"):
        make(TWO, missing_features="zeros")


# --- TensorDict -----------------------------------------------------------------------------------


def test_a_tensordict_of_jagged_tensors_is_torchrecs(torchrec, imported):
    tensordict = imported("tensordict")

    def jagged(values: list[int], offsets: list[int]) -> torch.Tensor:
        return torch.nested.nested_tensor_from_jagged(torch.tensor(values), torch.tensor(offsets))

    batches = [
        tensordict.TensorDict(
            {"a": jagged([i, 1, 2], [0, 2, 3]), "b": jagged([3, 4], [0, 0, 2])}, batch_size=[2]
        )
        for i in range(4)
    ]
    module, theirs = pair(torchrec, [("t1", 3, ["a"], "sum"), ("t2", 4, ["b", "a"], "mean")])
    with module:
        train(module, theirs, batches, prefetch=False)
        for batch in te.prefetch(batches, module, ids=lambda batch: {module: batch}):
            same(module(batch), theirs(batch))
            module(batch).values().sum().backward()
            break
    config = torchrec.EmbeddingConfig(
        name="t", embedding_dim=3, num_embeddings=ROWS, feature_names=["a", "b"]
    )
    theirs = torchrec.EmbeddingCollection([config])
    with te.TieredEmbeddingCollection(
        [te.TableConfig("t", ROWS, 3, ["a", "b"])], tiers=TIERS, optimizer=te.optim.SGD(lr=LR)
    ) as module:
        module.load_rows(EVERY, theirs.embeddings["t"].weight.detach())
        ours, wanted = module(batches[1]), theirs(batches[1])
        for name, part in wanted.items():
            assert torch.equal(ours[name].values(), part.values())
            assert torch.equal(ours[name].lengths(), part.lengths())


def test_a_tensordict_of_dense_tensors_is_a_mapping(imported):
    tensordict = imported("tensordict")
    ids = {"a": torch.tensor([[1, 2], [3, 4]]), "b": torch.tensor([[5], [6]])}
    with make([("t1", 3, ["a"], "sum"), ("t2", 4, ["b"], "mean")]) as module:
        ours = module(tensordict.TensorDict(ids, batch_size=[2]))
        for name, wanted in module(ids).items():
            assert torch.equal(ours[name], wanted)

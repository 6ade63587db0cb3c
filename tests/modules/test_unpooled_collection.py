"""``te.TieredEmbeddingCollection``: as TorchRec's ``EmbeddingCollection`` and ``nn.Embedding``."""

import tempfile
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiered_embed as te
from tiered_embed.simulate import Records, replay
from tiered_embed.traces import open_trace, record

ROWS, DIM, LR = 30, 5, 0.1
TIERS = te.Tiers(ddr="1MiB")
EVERY = range(ROWS)
SHARED = (("t1", ["f1", "f2"]), ("t2", ["f2"]))  # as in TorchRec's own tests


def make(tables: Any = SHARED, tiers: te.Tiers = TIERS, **options: Any) -> Any:
    given = {"optimizer": te.optim.SGD(lr=LR), "init": te.init.Uniform(-1, 1), **options}
    configs = [te.TableConfig(name, ROWS, DIM, features) for name, features in tables]
    return te.TieredEmbeddingCollection(configs, tiers=tiers, **given)


@pytest.fixture(scope="module")
def torchrec(imported) -> Any:
    return imported("torchrec")


def collection_of(torchrec: Any, tables: Any = SHARED, **options: Any) -> Any:
    """TorchRec's collection of the same tables."""
    configs = [
        torchrec.EmbeddingConfig(
            name=name, embedding_dim=DIM, num_embeddings=ROWS, feature_names=list(features)
        )
        for name, features in tables
    ]
    return torchrec.EmbeddingCollection(configs, **options)


def fill(module: Any, theirs: Any) -> None:
    for name, embedding in theirs.embeddings.items():
        module.load_rows(EVERY, embedding.weight.detach(), table=name)


def jagged(torchrec: Any, keys: list[str], bags: int, seed: int, *, weighted: bool = False) -> Any:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (len(keys) * bags,), generator=generator)
    total = int(lengths.sum())
    return torchrec.KeyedJaggedTensor(
        keys=keys,
        values=torch.randint(0, ROWS, (total,), generator=generator),
        lengths=lengths,
        weights=torch.rand(total, generator=generator) if weighted else None,
    )


def small(torchrec: Any) -> Any:
    """The batch of TorchRec's own tests."""
    return torchrec.KeyedJaggedTensor.from_offsets_sync(
        keys=["f1", "f2"], values=torch.arange(4), offsets=torch.tensor([0, 2, 3, 3, 4])
    )


# --- TorchRec's EmbeddingCollection ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # TorchRec's own
def test_shapes_names_and_attributes_are_torchrecs(torchrec):
    theirs = collection_of(torchrec)
    with make() as module:
        fill(module, theirs)
        out, wanted = module(features=small(torchrec)), theirs(features=small(torchrec))
        assert list(out) == list(wanted) == ["f1", "f2@t1", "f2@t2"]
        assert [tuple(part.values().shape) for part in out.values()] == [(3, 5), (1, 5), (1, 5)]
        for name, part in wanted.items():
            assert type(out[name]) is type(part)
            assert torch.equal(out[name].values(), part.values())
            assert torch.equal(out[name].lengths(), part.lengths())
            assert torch.equal(out[name].offsets(), part.offsets())
            assert out[name].weights_or_none() is part.weights_or_none() is None
        assert module.embedding_names_by_table() == theirs.embedding_names_by_table()
        assert module.embedding_dim() == theirs.embedding_dim()
        assert module.need_indices() is theirs.need_indices() is False
        assert module.device == theirs.device
        for mine, other in zip(module.embedding_configs(), theirs.embedding_configs(), strict=True):
            for field in ("name", "num_embeddings", "embedding_dim"):
                assert getattr(mine, field) == getattr(other, field)
            assert list(mine.feature_names) == other.feature_names


@pytest.mark.filterwarnings("ignore")
def test_indices_are_the_weights_where_they_are_needed(torchrec):
    theirs = collection_of(torchrec, need_indices=True)
    with make(need_indices=True) as module:
        out, wanted = module(small(torchrec)), theirs(small(torchrec))
        for name, ids in (("f1", [0, 1, 2]), ("f2@t1", [3]), ("f2@t2", [3])):
            assert out[name].weights().tolist() == wanted[name].weights().tolist() == ids


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (("t1", 2), "table 't1' is configured twice"),
        (("t2", 3), "'t1' has embedding_dim 2, but table 't2' has 3; make a collection for each"),
    ],
    ids=["one name", "two dims"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_torchrec_refuses_is_refused(second, message, torchrec):
    tables = [("t1", 2, "f1"), (*second, "f2")]
    with pytest.raises(ValueError, match=r"Duplicate table name|same embedding dim"):
        torchrec.EmbeddingCollection(
            [
                torchrec.EmbeddingConfig(
                    name=n, embedding_dim=d, num_embeddings=9, feature_names=[f]
                )
                for n, d, f in tables
            ]
        )
    with pytest.raises(ValueError, match=message):
        te.TieredEmbeddingCollection(
            [te.TableConfig(n, 9, d, [f]) for n, d, f in tables],
            tiers=TIERS,
            optimizer=te.optim.SGD(lr=LR),
        )


def test_a_pooling_mode_is_refused():
    with pytest.raises(te.ConfigError, match=r"mode='mean'.* does not pool; leave mode out"):
        te.TieredEmbeddingCollection(
            [te.TableConfig("a", 9, 4, mode="mean")], tiers=TIERS, optimizer=te.optim.SGD(lr=LR)
        )


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, derandomize=True, print_blob=True, max_examples=60)
@given(data=st.data())
def test_drawn_collections_train_as_torchrecs(data, torchrec):
    """Tables shared by features, features shared by tables, keys of no table, empty bags."""
    names = ["a", "b", "c", "d"]
    draw = data.draw
    tables = [
        (f"t{i}", draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)))
        for i in range(draw(st.integers(1, 3)))
    ]
    keys = draw(st.permutations([*names, "unused"]))
    bags, seed = draw(st.integers(0, 5)), draw(st.integers(0, 99))
    need_indices, weighted, backed = (draw(st.booleans()) for _ in range(3))
    theirs = collection_of(torchrec, tables, need_indices=need_indices)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=LR)
    batches = [jagged(torchrec, keys, bags, seed + i, weighted=weighted) for i in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        tiers = te.Tiers(ddr=DIM * 4 * 12, ssd=folder, store="memory") if backed else TIERS
        with make(tables, tiers, need_indices=need_indices, lookahead=2, depth=1) as module:
            fill(module, theirs)
            for batch in te.prefetch(batches, module):
                ours, wanted = module(batch), theirs(batch)
                assert list(ours) == list(wanted)
                optimizer.zero_grad()
                for out in (ours, wanted):
                    loss = sum(part.values().square().sum() for part in out.values())
                    loss.backward()
                optimizer.step()
                for name, part in wanted.items():
                    torch.testing.assert_close(ours[name].values(), part.values())
                    assert torch.equal(ours[name].lengths(), part.lengths())
                    if need_indices:
                        assert torch.equal(ours[name].weights(), part.weights())
            assert module.stats().unmatched == 0
            for name, embedding in theirs.embeddings.items():
                torch.testing.assert_close(module.rows(EVERY, name), embedding.weight.detach())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_a_torchrec_collection_is_swapped(half, torchrec, tmp_path):
    theirs = collection_of(torchrec, need_indices=True)
    if half:
        configs = theirs.embedding_configs()
        for config in configs:
            config.data_type = torchrec.types.DataType.FP16
        theirs = torchrec.EmbeddingCollection(configs, need_indices=True)
    plain = nn.ModuleDict({"ec": theirs})
    model = nn.ModuleDict({"ec": theirs})
    report = te.swap(model, tiers=TIERS, optimizer=te.optim.SGD(lr=LR))
    assert [(e.path, e.class_name, e.swapped) for e in report.entries] == [
        ("ec.t1", "EmbeddingCollection", True),
        ("ec.t2", "EmbeddingCollection", True),
    ]
    ours: Any = model["ec"]
    assert type(ours) is te.TieredEmbeddingCollection
    assert ours.embedding_names_by_table() == theirs.embedding_names_by_table()
    batch = jagged(torchrec, ["f2", "f1"], 4, 1)
    wanted = theirs(batch)
    out = ours(batch)
    assert list(out) == list(wanted)
    for name, part in wanted.items():
        assert out[name].values().dtype == part.values().dtype == torch.float32
        assert torch.equal(out[name].values(), part.values())
        assert torch.equal(out[name].weights(), part.weights())
    with torch.no_grad():
        for embedding in theirs.embeddings.values():
            embedding.weight.mul_(2)
    model.load_state_dict(plain.state_dict())
    for name, embedding in theirs.embeddings.items():
        assert torch.equal(ours.rows(EVERY, f"ec.{name}"), embedding.weight)
    ours.close()


# --- in torch's terms, without TorchRec -----------------------------------------------------------


def test_a_mapping_gives_rows_shaped_like_its_ids():
    generator = torch.Generator().manual_seed(1)
    shapes = {"f1": (2, 3), "f2": (4,)}
    with make() as module:
        embeddings = {
            name: nn.Embedding(ROWS, DIM, _weight=module.rows(EVERY, name).clone())
            for name in ("t1", "t2")
        }
        optimizer = torch.optim.SGD([e.weight for e in embeddings.values()], lr=LR)
        for _ in range(3):
            batch = {
                name: torch.randint(0, ROWS, shape, generator=generator)
                for name, shape in shapes.items()
            }
            ours = module(batch)
            wanted = {
                "f1": embeddings["t1"](batch["f1"]),
                "f2@t1": embeddings["t1"](batch["f2"]),
                "f2@t2": embeddings["t2"](batch["f2"]),
            }
            assert list(ours) == list(wanted)
            optimizer.zero_grad()
            for out in (ours, wanted):
                sum(part.square().sum() for part in out.values()).backward()
            optimizer.step()
            for name in wanted:
                torch.testing.assert_close(ours[name], wanted[name])
            # What a bag collection takes serves too.
            pairs = {name: (ids.reshape(-1), torch.tensor([0])) for name, ids in batch.items()}
            with torch.no_grad():
                out = module(pairs)
                torch.testing.assert_close(out["f1"], embeddings["t1"](batch["f1"].reshape(-1)))
        assert module({"f1": torch.empty(0, 2, dtype=int), "f2": torch.tensor(3)})["f1"].shape == (
            0,
            2,
            DIM,
        )


def test_padding_and_ignored_ids_are_as_in_embedding():
    ids = torch.tensor([[3, 0], [-7, 29], [30, 0]])
    options = {
        "tiers": TIERS,
        "optimizer": te.optim.SGD(lr=LR),
        "init": te.init.Uniform(-1, 1),
        "bounds_check": "ignore",
    }
    tables = [te.TableConfig("a", ROWS, DIM, padding_idx=0), te.TableConfig("b", ROWS, DIM)]
    padding = torch.arange(float(DIM))[None]
    with (
        te.TieredEmbeddingCollection(tables, **options) as module,
        te.TieredEmbedding(ROWS, DIM, name="a", padding_idx=0, **options) as a,
        te.TieredEmbedding(ROWS, DIM, name="b", **options) as b,
    ):
        module.load_rows([0], padding, table="a")
        a.load_rows([0], padding)
        for _ in range(2):
            out, wanted = module({"a": ids, "b": ids}), {"a": a(ids), "b": b(ids)}
            for name in wanted:
                assert torch.equal(out[name], wanted[name])
            for each in (out, wanted):
                sum(part.square().sum() for part in each.values()).backward()
        assert torch.equal(module.rows(EVERY, "a"), a.rows(EVERY))
        assert torch.equal(module.rows(EVERY, "b"), b.rows(EVERY))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"f1": torch.tensor([1])}, r"features missing: \['f2'\]"),
        ({"f1": torch.tensor([1]), "f2": torch.tensor([1.0])}, "feature 'f2': indices has dtype"),
        ({"f1": [1], "f2": torch.tensor([1])}, "feature 'f1': indices is a list"),
        (torch.tensor([1]), "input is a Tensor; pass a KeyedJaggedTensor or {feature: ids}"),
    ],
)
def test_bad_input_changes_nothing(batch, message):
    with make() as module:
        with pytest.raises(te.ConfigError, match=message):
            module(batch)
        with pytest.raises(te.IdRangeError, match="table 't1': id 30 at position 1"):
            module({"f1": torch.tensor([1]), "f2": torch.tensor([29, 30])})
        assert module.stats().tiers["DDR"].lookups == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("keys", "offsets", "message"),
    [
        (["f1", "f1"], [0, 2, 3, 3, 4], "the key 'f1' more than once"),
        (["f1", "f2"], [0, 2, 3, 3, 3], r"4 ids, but its 2 keys divide them at \[0, 3, 3\]"),
        (["f1", "f2"], [0, 2, 4, 5, 4], "a length is -1; lengths must not be negative"),
    ],
    ids=["a key twice", "ids of no bag", "falling offsets"],
)
def test_a_keyed_jagged_tensor_that_does_not_fit_is_refused(keys, offsets, message, torchrec):
    batch = torchrec.KeyedJaggedTensor(
        keys=keys, values=torch.arange(4), offsets=torch.tensor(offsets)
    )
    with make() as module, pytest.raises(te.ConfigError, match=message):
        module(batch)


# --- the rest of the house ------------------------------------------------------------------------


def batches(seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {f: torch.randint(0, ROWS, (6,), generator=generator) for f in ("f1", "f2")}
        for _ in range(8)
    ]


def train(module: Any, seed: int, *, prefetch: bool) -> None:
    given = batches(seed)
    for batch in te.prefetch(given, module, ids=lambda b: {module: b}) if prefetch else given:
        sum(part.square().sum() for part in module(batch).values()).backward()


def test_prefetch_simulation_and_checkpoints_know_it(tmp_path):
    tiers = te.Tiers(ddr=DIM * 4 * 24, ssd=tmp_path / "rows")
    options = {"lookahead": 4, "depth": 1, "policy": "lookahead"}
    with make(tiers=tiers, **options) as module, make() as whole:
        record_first = record(module, tmp_path / "ids.tet")
        with record_first:
            train(module, 1, prefetch=True)
        train(whole, 1, prefetch=False)
        assert module.digest() == whole.digest()
        stats = module.stats()
        assert stats.unmatched == 0
        assert stats.tables["t1"].lookups == 2 * stats.tables["t2"].lookups == 96
        wanted = replay(
            open_trace(tmp_path / "ids.tet"),
            tiers,
            "lookahead",
            4,
            1,
            records=Records(DIM, te.optim.SGD(lr=LR)),
        )
        assert wanted.differences(stats, flushed=True) == []
        te.checkpoint.save(module, tmp_path / "saved", step=8)
        train(module, 2, prefetch=True)
        final = module.digest()
        te.checkpoint.load(module, tmp_path / "saved")
        assert module.digest() == whole.digest()
        train(module, 2, prefetch=False)
        assert module.digest() == final


def test_tables_keep_options_of_their_own():
    tables = [
        te.TableConfig("a", ROWS, DIM, optimizer=te.optim.Adagrad(lr=0.3)),
        te.TableConfig("b", ROWS, DIM, dtype=torch.float16),
        te.TableConfig("c", ROWS, DIM, trainable=False),
    ]
    common = {"optimizer": te.optim.SGD(lr=LR), "output_dtype": torch.float32}
    with (
        te.TieredEmbeddingCollection(tables, tiers=TIERS, **common) as module,
        te.TieredEmbeddingBagCollection(tables, tiers=TIERS, **common) as bags,
    ):
        for seed in range(3):
            ids = torch.randint(0, ROWS, (9,), generator=torch.Generator().manual_seed(seed))
            for collection, batch in ((module, ids), (bags, ids[:, None])):
                out = collection({t.name: batch for t in tables})
                sum(part.square().sum() for part in out.values()).backward()
        assert module.digest() == bags.digest()

"""Recording: the trace is what the model looked up, batch for batch, and the model is as before."""

import numpy as np
import pytest
import torch
from torch import nn

import tiered_embed as te
from tiered_embed import traces
from tiered_embed.errors import ConfigError
from tiered_embed.traces import read_tet, record
from trace_samples import bags, batches


def collection(**options):
    tables = [
        te.TableConfig("user", 1000, 4, ["user"]),
        te.TableConfig("item", None, 4, ["seen", "bought"], padding_idx=0),
        te.TableConfig("city", 50, 8, ["city"]),
    ]
    tiers = te.Tiers(ddr="1MiB")
    optimizer = te.optim.SGD(lr=0.1)
    return te.TieredEmbeddingBagCollection(tables, tiers=tiers, optimizer=optimizer, **options)


def bag(name="a", rows=100, **options):
    return te.TieredEmbeddingBag(
        rows, 4, tiers=te.Tiers(ddr="1MiB"), optimizer=te.optim.SGD(lr=0.1), name=name, **options
    )


def ids(*values):
    return torch.tensor(values)


class Model(nn.Module):
    """Two plain tables, one of them used twice a forward."""

    def __init__(self):
        super().__init__()
        self.users = nn.Embedding(100, 4)
        self.items = nn.EmbeddingBag(200, 4, mode="sum", padding_idx=7)

    def forward(self, user, item, offsets):
        return self.users(user) + self.users(user + 1) + self.items(item, offsets)


def test_a_plain_model_batch_for_batch(tmp_path):
    model = Model()
    with record(model, tmp_path / "a.tet") as recorder:
        for step in range(3):
            model(ids(step, 5), ids(1, 7, 2), offsets=ids(0, 2)).sum().backward()
        assert (recorder.num_batches, recorder.num_accesses) == (3, 18)
    trace = read_tet(tmp_path / "a.tet")
    assert [(table.name, table.num_rows) for table in trace.tables] == [
        ("users", 100),
        ("items", 200),
    ]
    assert batches(trace) == [[[step, 5, step + 1, 6], [1, 2]] for step in range(3)]
    assert all(chunk.bags is None for chunk in trace.chunks())
    assert not model._forward_hooks
    assert not model.users._forward_hooks


def test_bags_are_kept_where_every_table_is_read_once(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Embedding(100, 4)
            self.many = nn.EmbeddingBag(100, 4, include_last_offset=True)
            self.square = nn.EmbeddingBag(100, 4)

        def forward(self, one, many, offsets, square):
            return self.one(one) + self.many(many, offsets) + self.square(input=square)

    model = Pair()
    with record(model, tmp_path / "a.tet"):
        model(ids(1, 2), ids(3, 4, 5), ids(0, 0, 3), ids([6, 7], [8, 9]))
        model(ids(1), ids(3), ids(0, 1), ids([6, 7]))
    trace = read_tet(tmp_path / "a.tet")
    assert batches(trace) == [[[1, 2], [3, 4, 5], [6, 7, 8, 9]], [[1], [3], [6, 7]]]
    assert bags(trace) == [
        [[1], [], [6, 7]],
        [[2], [3, 4, 5], [8, 9]],
        [[1], [3], [6, 7]],
    ]


def test_a_tiered_collection_is_recorded_as_its_planner_sees_it(tmp_path):
    with collection(bounds_check="clamp") as model:
        with record(model, tmp_path / "a.tet"):
            for step in range(2):
                out = model(
                    {
                        "user": (ids(5, 2000, step), ids(0, 1)),
                        "seen": (ids(0, 9, 10**15), ids(0, 1)),
                        "bought": (ids(9), ids(0, 1)),
                        "city": (ids(3, 3), ids(0, 1)),
                    }
                )
                sum(each.sum() for each in out.values()).backward()
        stats = model.stats()
    trace = read_tet(tmp_path / "a.tet")
    assert [(table.name, table.num_rows) for table in trace.tables] == [
        ("user", 1000),
        ("item", None),
        ("city", 50),
    ]
    assert batches(trace) == [[[5, 999, step], [9, 10**15, 9], [3, 3]] for step in range(2)]
    for t, table in enumerate(trace.tables):
        unique = sum(len(np.unique(parts[t])) for parts in trace)
        lookups = sum(len(parts[t]) for parts in trace)
        counted = stats.tables[table.name]
        assert (counted.lookups, counted.unique) == (lookups, unique)


def test_a_prefetched_loop_is_recorded_and_trains_the_same(tmp_path):
    generator = torch.Generator().manual_seed(0)
    loader = [torch.randint(0, 100, (8, 3), generator=generator) for _ in range(6)]

    def digest(recording):
        with bag(seed=3) as model:
            context = record(model, tmp_path / "a.tet") if recording else torch.enable_grad()
            with context:
                for batch in te.prefetch(loader, model, ids=lambda batch: {model: batch}):
                    model(batch).sum().backward()
            return model.digest()

    assert digest(True) == digest(False)
    trace = read_tet(tmp_path / "a.tet")
    assert batches(trace) == [[batch.reshape(-1).tolist()] for batch in loader]
    assert bags(trace) == [[row] for batch in loader for row in batch.tolist()]


def test_an_unpooled_tiered_table(tmp_path):
    model = te.TieredEmbedding(
        100, 4, tiers=te.Tiers(ddr="1MiB"), optimizer=te.optim.SGD(lr=0.1), padding_idx=1
    )
    with model, record(model, tmp_path / "a.tet"):
        model(ids([1, 2], [3, 3])).sum().backward()
    assert batches(read_tet(tmp_path / "a.tet")) == [[[2, 3, 3]]]


def test_evaluation_is_recorded_only_on_request(tmp_path):
    for evaluation, expected in ((False, [[[1, 2]]]), (True, [[[1, 2]], [[3]], [[4]]])):
        model = nn.Embedding(10, 2)
        with record(model, tmp_path / "a.tet", evaluation=evaluation):
            model(ids(1, 2))
            with torch.no_grad():
                model(ids(3))
            model.eval()(ids(4))
        assert batches(read_tet(tmp_path / "a.tet")) == expected


def test_modules_called_without_their_model(tmp_path):
    model = Model()
    with record(model, tmp_path / "a.tet"):
        for step in range(3):
            model.users(ids(step))
            model.items(ids(1, 2), ids(0))
    assert batches(read_tet(tmp_path / "a.tet")) == [[[step], [1, 2]] for step in range(3)]


def test_a_failed_forward_is_not_recorded_and_the_rest_is_kept(tmp_path):
    model = nn.Sequential(nn.Embedding(10, 2))

    def run():
        with record(model, tmp_path / "a.tet"):
            model(ids(1))
            with pytest.raises(IndexError):
                model(ids(99))
            model(ids(2))
            raise KeyError("the loop")

    with pytest.raises(KeyError):
        run()
    assert batches(read_tet(tmp_path / "a.tet")) == [[[1]], [[2]]]


def test_ids_are_copied(tmp_path):
    model = nn.Embedding(10, 2)
    batch = ids(1, 2)
    with record(model, tmp_path / "a.tet"):
        model(batch)
        batch.zero_()
    assert batches(read_tet(tmp_path / "a.tet")) == [[[1, 2]]]


def test_long_recordings_are_written_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("tiered_embed.traces.recorder.CHUNK_IDS", 10)
    model = nn.Embedding(100, 2)
    with record(model, tmp_path / "a.tet") as recorder:
        for step in range(10):
            model(torch.arange(step, step + 4))
        assert recorder.num_accesses == 40
    trace = read_tet(tmp_path / "a.tet")
    assert [chunk.num_ids for chunk in trace.chunks()] == [12, 12, 12, 4]
    assert batches(trace) == [[list(range(step, step + 4))] for step in range(10)]


def test_a_model_without_embeddings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a Linear has no embeddings to record"):
        traces.Recorder(nn.Linear(2, 2), tmp_path / "a.tet")
    assert not list(tmp_path.iterdir())


def test_two_tables_of_one_name_are_refused(tmp_path):
    model = nn.ModuleList([bag("a"), bag("a")])
    with pytest.raises(ConfigError, match="two tables have one name"):
        traces.Recorder(model, tmp_path / "a.tet")
    for module in model:
        module.close()


def test_the_first_model_of_a_program_is_recorded_whole(tmp_path):
    model, other = Model(), nn.Linear(2, 2)
    with traces.record_first(tmp_path / "a.tet") as recorders:
        other(torch.zeros(2))
        assert recorders == []
        for step in range(2):
            model(ids(step, 5), ids(1, 2), ids(0, 1))
    assert batches(read_tet(tmp_path / "a.tet")) == [
        [[step, 5, step + 1, 6], [1, 2]] for step in range(2)
    ]


def test_torchrec_collections_are_recorded(tmp_path, imported):
    torchrec = imported("torchrec")
    sparse = imported("torchrec.sparse.jagged_tensor")
    model = torchrec.EmbeddingBagCollection(
        tables=[
            torchrec.EmbeddingBagConfig(
                name="t", embedding_dim=4, num_embeddings=50, feature_names=["f"]
            )
        ]
    )
    features = sparse.KeyedJaggedTensor.from_lengths_sync(["f"], ids(1, 2, 3), ids(2, 1))
    with record(model, tmp_path / "a.tet"):
        model(features)
    trace = read_tet(tmp_path / "a.tet")
    assert trace.tables[0].name == "embedding_bags.t"
    assert bags(trace) == [[[1, 2]], [[3]]]

"""DLRM: its mathematics and its learning, over plain embedding bags in the collection's place.

The demo at the end runs through the real tiers.
"""

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tiered_embed import traces
from tiered_embed.examples import demo, dlrm


class PlainBags(nn.Module):
    """The collection's calling convention over one hashed ``nn.EmbeddingBag`` per feature."""

    def __init__(self, num_embeddings, dim, feature_names=dlrm.FEATURE_NAMES):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.bags = nn.ModuleDict()
        for name in feature_names:
            weight = torch.rand(num_embeddings, dim, generator=generator) * 0.02 - 0.01
            self.bags[name] = nn.EmbeddingBag.from_pretrained(weight, freeze=False, mode="sum")

    def forward(self, features):
        return {name: bag(*features[name]) for name, bag in self.bags.items()}


@pytest.fixture(autouse=True)
def _one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("shape", [(5, 27, 16), (1, 2, 3), (3, 1, 4), (0, 4, 2)])
def test_interaction_is_all_pairs_dot_products(shape):
    vectors = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    num_bags, num_vectors, _ = shape
    naive = torch.tensor(
        [[float(x[i] @ x[j]) for i in range(num_vectors) for j in range(i)] for x in vectors],
        dtype=torch.float64,
    ).reshape(num_bags, num_vectors * (num_vectors - 1) // 2)
    torch.testing.assert_close(dlrm.interact(vectors), naive)


def test_forward_against_a_naive_loop():
    names = ("a", "b", "c")
    model = dlrm.DLRM(PlainBags(10, 4, names), 4, names, num_dense=2, bottom=(3,), top=(5,))
    dense = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    features = {
        name: (torch.tensor([1, i, 3]), torch.tensor([0, 2])) for i, name in enumerate(names)
    }
    logits = model(dense, features)
    assert logits.shape == (2,)
    bags = model.embeddings.bags
    for b, rows in enumerate(([0, 1], [2])):
        x = model.bottom(dense[b])
        vectors = [x] + [
            sum(bags[name].weight[features[name][0][row]] for row in rows) for name in names
        ]
        products = [vectors[i] @ vectors[j] for i in range(4) for j in range(i)]
        expected = model.top(torch.cat([x, torch.stack(products)]))
        torch.testing.assert_close(logits[b : b + 1], expected)


def test_dense_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (
        dlrm.DLRM(nn.Identity(), 4, ("a",), seed=seed).dense_parameters() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0])


def test_lookups_are_one_bag_per_example():
    ids = np.arange(26 * 3).reshape(26, 3)
    batch = traces.CriteoBatch(np.zeros((3, 13), np.float32), ids, np.zeros(3, np.float32))
    features = dlrm.lookups(batch)
    assert list(features) == list(dlrm.FEATURE_NAMES)
    assert features["C2"][0].tolist() == [3, 4, 5]
    assert all(offsets.tolist() == [0, 1, 2] for _, offsets in features.values())


def test_criteo_tables_hold_every_raw_id():
    tables = dlrm.criteo_tables(16)
    assert [list(table.feature_names) for table in tables] == [[f"C{i}"] for i in range(1, 27)]
    assert {table.num_embeddings for table in tables} == {traces.MISSING_ID + 1}
    assert {table.embedding_dim for table in tables} == {16}


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Hashed training and held-out batches of generated data."""
    path = tmp_path_factory.mktemp("criteo") / "log"
    traces.CriteoGenerator(6000, seed=0).write(path)

    def read(part):
        options = traces.CriteoOptions(batch_size=64, num_embeddings=2000, part=part)
        return list(traces.CriteoReader(path, options))

    return read("train"), read("heldout")


def fit(batches, num_epochs):
    model = dlrm.DLRM(PlainBags(2000, 8), 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    steps = [
        dlrm.train(model, batches, optimizer, lambda step, loss: losses.append((step, loss)))
        for _ in range(num_epochs)
    ]
    assert steps == [len(batches)] * num_epochs
    assert [step for step, _ in losses[: len(batches)]] == list(range(1, len(batches) + 1))
    return model, [loss for _, loss in losses]


def test_it_learns_generated_data(logs):
    train, heldout = logs
    model, _ = fit(train, 2)
    scores = dlrm.evaluate(model, heldout)
    assert scores.num_examples == 1200
    assert scores.auc > 0.70
    share = np.mean(np.concatenate([batch.labels for batch in heldout]))
    base = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert scores.log_loss < base - 0.03
    assert model.training  # evaluate restored the mode


def test_training_repeats_bit_for_bit(logs):
    train, _ = logs
    assert fit(train[:8], 1)[1] == fit(train[:8], 1)[1]


def test_scores_need_both_labels(logs):
    _, heldout = logs
    model = dlrm.DLRM(PlainBags(2000, 8), 8)
    ones = [traces.CriteoBatch(b.dense, b.ids, np.ones_like(b.labels)) for b in heldout[:2]]
    for batches in ([], ones):
        with pytest.raises(ValueError, match="examples of both labels"):
            dlrm.evaluate(model, batches)


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    """Run the demo on a short generated log; returns (result, out folder)."""
    monkeypatch.setenv(traces.DATA_VARIABLE, str(tmp_path / "absent"))
    monkeypatch.setattr(demo, "GENERATED_LINES", 600)
    out = tmp_path / "out"

    def run():
        arguments = ["--out", str(out), "--epochs", "2", "--batch-size", "8"]
        return CliRunner().invoke(demo.app, arguments), out

    return run


def test_demo_ends_with_equal_digests(small_demo, capsys):
    result, out = small_demo()
    printed = result.output + capsys.readouterr().out
    assert result.exit_code == 0, (printed, result.exception)
    assert "generated 600 lines" in printed
    assert "\ndigests equal\n" in printed
    assert (out / "hits_and_stalls.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == [
        "generated_criteo.tsv",
        "hits_and_stalls.png",
    ]


def test_demo_fails_when_the_digests_differ(small_demo, capsys, monkeypatch):
    honest = demo.run
    digests = iter(["a" * 64, "b" * 64])

    def run(*args):
        result = honest(*args)
        return demo.Result(result.scores, result.stats, next(digests), result.train_s, result.trace)

    monkeypatch.setattr(demo, "run", run)
    result, _ = small_demo()
    assert result.exit_code == 1
    assert "\ndigests DIFFER\n" in result.output + capsys.readouterr().out

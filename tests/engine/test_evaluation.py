"""Evaluation reads rows where they are, ahead of the loop too, and leaves training as it was."""

import numpy as np
import pytest
import torch

import tiered_embed as te

ROWS, DIM = 400, 8


def module(tmp_path, **options):
    tiers = options.pop("tiers", te.Tiers(ddr=60 * 4 * (DIM + 1), ssd=tmp_path))
    return te.TieredEmbeddingBag(
        ROWS, DIM, tiers=tiers, optimizer=te.optim.RowWiseAdagrad(lr=0.1), num_threads=2, **options
    )


def batches(seed, number=12, bags=8, size=5):
    rng = np.random.default_rng(seed)
    return [
        (torch.from_numpy(rng.integers(0, ROWS, bags * size)), torch.arange(bags) * size)
        for _ in range(number)
    ]


def expected(emb, batch, mode="sum"):
    weight = emb.rows(range(ROWS))
    return torch.nn.functional.embedding_bag(batch[0], weight, batch[1], mode=mode)


def train(emb, data):
    for batch in data:
        emb(*batch).square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("where", ["memory", "ssd", "two tiers"])
def test_it_is_the_table_s_lookup(tmp_path, where, mode, dtype):
    size = 4 * (DIM + 1)
    tiers = {
        "memory": te.Tiers(ddr="1MiB"),
        "ssd": te.Tiers(ddr=60 * size, ssd=tmp_path),
        "two tiers": te.Tiers(hbm=45 * size, ddr=60 * size, ssd=tmp_path),
    }[where]
    extra = {} if where != "two tiers" else {"device": "cpu", "kernel": "native"}
    with module(tmp_path, tiers=tiers, mode=mode, dtype=dtype, **extra) as emb:
        train(emb, batches(0))
        before = emb.stats()
        for batch in batches(1):
            with torch.no_grad():
                got = emb(*batch)
            torch.testing.assert_close(got, expected(emb, batch, mode))
        after = emb.stats()
        assert after.tiers["DDR"].lookups == before.tiers["DDR"].lookups
        assert after.topmost.staged == before.topmost.staged
        assert after.topmost.evicted == before.topmost.evicted
        assert after.evaluation.forwards == 12
        assert after.evaluation.lookups == 12 * 40
        assert (after.evaluation.misses > 0) == (where != "memory" or after.topmost.resident < ROWS)


@pytest.mark.parametrize("depth", [0, 2])
def test_prefetch_reads_an_evaluation_ahead(tmp_path, depth):
    data = batches(2)
    with module(tmp_path, depth=depth, lookahead=4) as emb:
        train(emb, batches(0))
        before = emb.stats()
        emb.eval()
        with torch.no_grad():
            for batch in te.prefetch(data, emb, ids=lambda b: {emb: b}):
                torch.testing.assert_close(emb(*batch), expected(emb, batch))
        after = emb.stats()
        assert after.evaluation.forwards == len(data)
        assert after.evaluation.read == after.evaluation.read_ahead > 0
        assert after.topmost.staged == before.topmost.staged
        assert after.unmatched == 0


def test_rows_that_were_read_ahead_are_not_used_once_they_may_have_changed(tmp_path):
    data = batches(3, number=6)
    with module(tmp_path, lookahead=4) as emb:
        train(emb, batches(0))
        with torch.no_grad():
            for i, batch in enumerate(te.prefetch(data, emb, ids=lambda b: {emb: b})):
                if i % 2:
                    with torch.enable_grad():
                        train(emb, [data[i]])
                else:
                    emb.load_rows(batch[0].unique(), torch.full((len(batch[0].unique()), DIM), 2.0))
                torch.testing.assert_close(emb(*batch), expected(emb, batch))


def test_training_s_bits_and_counts_are_those_of_a_run_without_evaluations(tmp_path):
    data, other = batches(4), batches(5)
    ends = []
    for evaluates in (False, True):
        with module(tmp_path / str(evaluates), lookahead=4) as emb:
            for i, batch in enumerate(te.prefetch(data, emb, ids=lambda b: {emb: b})):
                if evaluates:
                    with torch.no_grad():
                        emb(*other[i])
                        if i == 3:  # a whole evaluation loop inside the training loop
                            for one in te.prefetch(other, emb, ids=lambda b: {emb: b}):
                                emb(*one)
                train(emb, [batch])
                if evaluates:
                    with torch.no_grad():
                        emb(*other[-1 - i])
            stats = emb.stats()
            counts = {n: (t.lookups, t.misses, t.staged, t.evicted) for n, t in stats.tiers.items()}
            ends.append((emb.digest(), counts, stats.unmatched))
    assert ends[0] == ends[1]


def test_a_batch_pulled_for_evaluation_trains_all_the_same(tmp_path, caplog):
    data = batches(6, number=8)
    with module(tmp_path, lookahead=2) as emb, module(tmp_path / "other") as other:
        emb.eval()
        loop = te.prefetch(data, emb, ids=lambda b: {emb: b})
        for i, batch in enumerate(loop):
            emb.train()
            train(emb, [batch])
            assert loop.state_dict()["batches"] == i + 1
        train(other, data)
        assert emb.digest() == other.digest()
        # Pulled before the loop's body first ran: the first batch and lookahead + depth more.
        assert emb.stats().unmatched == 1 + 2 + emb.engine.options.depth
    assert "did not train when te.prefetch pulled" in caplog.text
    assert "was shown no ids" not in caplog.text


def test_no_restore_while_a_loop_evaluates(tmp_path):
    with module(tmp_path / "rows") as emb, torch.no_grad():
        te.checkpoint.save(emb, tmp_path / "saved", step=0)
        loop = iter(te.prefetch(batches(9), emb, ids=lambda b: {emb: b}))
        next(loop)
        with pytest.raises(te.ConfigError, match="loop is running"):
            te.checkpoint.load(emb, tmp_path / "saved")
        loop.close()
        te.checkpoint.load(emb, tmp_path / "saved")


def test_two_evaluation_loops_of_one_module_are_refused(tmp_path):
    with module(tmp_path) as emb, torch.no_grad():
        outer = iter(te.prefetch(batches(7), emb, ids=lambda b: {emb: b}))
        next(outer)
        with pytest.raises(te.ConfigError, match="already evaluates"):
            next(iter(te.prefetch(batches(8), emb, ids=lambda b: {emb: b})))
        outer.close()

"""The short way of an evaluation: the same bits, counts and errors as the general one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiered_embed as te
from tiered_embed import _native

ROWS = 300


class Subclass(torch.Tensor):
    """A tensor that may mean something of its own."""


def module(mode="sum", dim=16, *, loaded=True, **options):
    options.setdefault("tiers", te.Tiers(ddr="1MiB"))
    options.setdefault("optimizer", te.optim.SGD(lr=0.1))
    made = te.TieredEmbeddingBag(ROWS, dim, mode, **options)
    if loaded:
        made.load_rows(torch.arange(ROWS), torch.randn(ROWS, dim))
    return made


def general(made, *args, **kwargs):
    """The forward without its short way."""
    plain, made.engine.plain = made.engine.plain, None
    try:
        return made(*args, **kwargs)
    finally:
        made.engine.plain = plain


def took_short_way(made, monkeypatch, *args):
    """Whether a forward with these arguments took the short way."""
    taken = []
    real = _native.lookup_plain
    with monkeypatch.context() as patch:
        patch.setattr(_native, "lookup_plain", lambda *a: taken.append(real(*a)) or taken[-1])
        made(*args)
    return taken == [True]


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["sum", "mean", "max"]),
    dim=st.sampled_from([1, 7, 16, 33, 64]),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    seed=st.integers(0, 99),
    last=st.booleans(),
)
def test_bits_are_those_of_the_general_way_and_torch(mode, dim, lengths, seed, last):
    torch.manual_seed(seed)
    made = module(mode, dim, include_last_offset=last).eval()
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    ids = torch.randint(0, ROWS, (sum(lengths),))
    given_offsets = offsets if last else offsets[:-1].contiguous()
    out = made(ids, given_offsets)
    assert made.stats().evaluation.forwards == 1
    assert made.stats().evaluation.lookups == len(ids)
    assert torch.equal(out, general(made, ids, given_offsets))
    theirs = torch.nn.functional.embedding_bag(
        ids, made.weight, given_offsets, mode=mode, include_last_offset=last
    )
    torch.testing.assert_close(out, theirs, rtol=1e-5, atol=1e-5)
    even = torch.randint(0, ROWS, (len(lengths), max(lengths) or 1))
    assert torch.equal(made(even), general(made, even))
    made.close()


def test_it_is_taken_where_it_applies_and_only_there(monkeypatch):
    made = module().eval()
    ids = torch.randint(0, ROWS, (5, 3))
    assert took_short_way(made, monkeypatch, ids)
    assert took_short_way(made, monkeypatch, ids.view(-1), torch.arange(0, 15, 3))
    assert not took_short_way(made, monkeypatch, ids.int())
    assert not took_short_way(made, monkeypatch, ids.t())
    assert not took_short_way(made, monkeypatch, ids.as_subclass(Subclass))
    assert not took_short_way(made, monkeypatch, ids, None, torch.ones(5, 3))
    made.train()
    assert not took_short_way(made, monkeypatch, ids)
    with torch.no_grad():
        assert took_short_way(made, monkeypatch, ids)
    made.close()
    made = module(loaded=False)
    assert not took_short_way(made.eval(), monkeypatch, ids)
    made.train()(ids).sum().backward()
    assert took_short_way(made.eval(), monkeypatch, ids)
    missing = (set(range(ROWS)) - set(ids.flatten().tolist())).pop()
    assert not took_short_way(made, monkeypatch, torch.tensor([[0, missing]]))
    made.close()


@pytest.mark.parametrize(
    "options",
    [
        {"padding_idx": 3},
        {"max_norm": 1.0},
        {"dtype": torch.float16},
        {"tiers": None},
    ],
    ids=["padding", "max_norm", "float16", "cache"],
)
def test_options_that_it_lacks_go_the_general_way(options, monkeypatch, tmp_path):
    if "tiers" in options:
        options = {"tiers": te.Tiers(ddr="8KiB", ssd=str(tmp_path))}
    made = module(**options).eval()
    assert not took_short_way(made, monkeypatch, torch.randint(0, ROWS, (5, 3)))
    made.close()


def test_errors_are_those_of_the_general_way():
    made = module().eval()
    good = torch.randint(0, ROWS, (12,))
    cases = [
        (torch.full((4, 3), ROWS),),
        (torch.full((4, 3), -1),),
        (good, torch.tensor([0, 8, 4])),
        (good, torch.tensor([1, 4])),
        (good, torch.tensor([0, 13])),
        (good, torch.tensor([], dtype=torch.int64)),
        (good,),
        (good.view(4, 3), torch.tensor([0])),
        (good.float().view(4, 3),),
        (good.view(2, 2, 3),),
    ]
    for args in cases:
        with pytest.raises(te.TieredEmbedError) as short:
            made(*args)
        with pytest.raises(te.TieredEmbedError) as long:
            general(made, *args)
        assert type(short.value) is type(long.value)
        assert str(short.value) == str(long.value)
    assert made.stats().evaluation.forwards == 0
    made.close()
    with pytest.raises(te.ClosedError):
        made(good.view(4, 3))


def test_it_sees_what_training_has_just_done():
    made = module()
    ids = torch.randint(0, ROWS, (6, 4))
    for _ in range(3):
        made(ids).sum().backward()
        with torch.no_grad():
            assert torch.equal(made(ids), general(made, ids))
    made.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 99))
def test_between_training_steps_it_gives_what_the_general_way_gives(trains, seed):
    """Some rows have been used, others not."""
    torch.manual_seed(seed)
    made = module(loaded=False)
    for train in trains:
        ids = torch.randint(0, 40, (3, 4))
        if train:
            made(ids).sum().backward()
        else:
            with torch.no_grad():
                assert torch.equal(made(ids), general(made, ids))
    made.close()


def test_a_checkpoint_that_was_restored_is_what_it_reads(tmp_path):
    made = module(tiers=te.Tiers(ddr="1MiB", ssd=str(tmp_path / "rows")))
    ids = torch.randint(0, ROWS, (6, 4))
    te.checkpoint.save(made, tmp_path / "saved", step=1)
    with torch.no_grad():
        saved = made(ids)
    made(ids).sum().backward()
    te.checkpoint.load(made, tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(made(ids), saved)
        assert torch.equal(made(ids), general(made, ids))
    made.close()


def test_a_loop_that_evaluates_ahead_is_answered():
    made = module().eval()
    batches = [torch.randint(0, ROWS, (6, 4)) for _ in range(5)]
    for ids in te.prefetch(batches, made, ids=lambda ids: {made: ids}):
        assert torch.equal(made(ids), general(made, ids))
    made.close()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_is_not_ours(default):
    made = module().eval()
    ids = torch.randint(0, ROWS, (6, 4))
    expected = made(ids)
    torch.set_default_dtype(default)
    try:
        assert torch.equal(made(ids), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    made.close()


def test_many_ids_are_checked_by_several_threads():
    ids = torch.randint(0, ROWS, (200_000,)).numpy()
    assert _native.first_bad_id(ids, ROWS, 4) == -1
    for bad in (0, 16383, 16384, 99_999, 199_999):
        wrong = ids.copy()
        wrong[bad] = ROWS
        wrong[bad + 1 :][-3:] = -1
        assert _native.first_bad_id(wrong, ROWS, 4) == bad
        assert _native.first_bad_id(wrong, ROWS, 1) == bad

"""A model's rows follow one te.lr_optimizer, however often it is asked for."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

import tiered_embed as te
from small import DIM, EVERY, ROWS, TIERS, make, random_ids
from tiered_embed.optim.descent import SGD


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=8.0)


def test_a_second_call_shares_the_schedule_of_the_first():
    weights = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    torchs = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=weights.clone())
    with make(optimizer=SGD(lr=0.5)) as emb:
        emb.load_rows(EVERY, weights)
        one, two = te.lr_optimizer(emb), torch.optim.SGD(torchs.parameters(), lr=0.5)
        every = [schedules.StepLR(rows, 1, gamma=0.5) for rows in (one, two)]
        assert te.lr_optimizer(nn.Sequential(emb)) is one
        assert te.lr_optimizer(emb).param_groups[0]["lr"] == 0.5
        for seed in range(4):
            two.zero_grad()
            for module in (emb, torchs):
                module(random_ids(seed)).square().sum().backward()
            for step in (one, two, *every):
                step.step()
        torch.testing.assert_close(emb.weight, torchs.weight.detach())
        assert te.lr_optimizer(emb).param_groups[0]["lr"] == 0.5**5


def test_modules_that_share_some_are_refused():
    with make(name="a") as a, make(name="b") as b:
        rows = te.lr_optimizer(nn.ModuleList([a, b]))
        for other in (a, b):
            with pytest.raises(te.ConfigError, match=r"for the tables \['a', 'b'\] already"):
                te.lr_optimizer(other)
        with make(name="c") as c:
            with pytest.raises(te.ConfigError, match="a schedule of the first would be lost"):
                te.lr_optimizer(nn.ModuleList([a, b, c]))
            assert te.lr_optimizer(c) is not rows
            with pytest.raises(te.ConfigError, match="Make one for the whole model"):
                te.lr_optimizer(nn.ModuleList([a, b, c]))
        assert te.lr_optimizer(nn.ModuleList([b, a])) is rows


def test_two_models_do_not_meet():
    with make(name="a") as a, make(name="b") as b:
        first, second = te.lr_optimizer(a), te.lr_optimizer(b)
        first.param_groups[0]["lr"] = 0.0
        before = a.digest(), b.digest()
        for module in (a, b):
            module(random_ids(0)).sum().backward()
        assert first is not second
        assert b.digest() != before[1]


def test_there_is_one_scaler():
    mine, other = scaler(), scaler()
    with make(optimizer=SGD(lr=1.0)) as emb:
        before = emb.weight
        rows = te.lr_optimizer(emb)
        assert te.lr_optimizer(emb, grad_scaler=mine) is rows
        assert te.lr_optimizer(emb) is rows
        with pytest.raises(te.ConfigError, match="another grad_scaler already"):
            te.lr_optimizer(emb, grad_scaler=other)
        mine.scale(emb(torch.tensor([[3]])).sum()).backward()
        assert torch.equal(emb.weight[3], before[3] - 1), "unscaled by the one that it has"


def test_no_group_is_added():
    """torch's optimizers would train its parameters."""
    dense = nn.Linear(2, 2)
    with make() as emb:
        rows = te.lr_optimizer(emb)
        with pytest.raises(te.ConfigError, match=r"give the dense parameters to a torch.optim"):
            rows.add_param_group({"params": dense.parameters()})
        assert len(rows.param_groups) == 1
        state = rows.state_dict()
        rows.load_state_dict(state)
        rows.param_groups[0]["lr"] = 0.0
        before = emb.weight
        emb(random_ids(1)).sum().backward()
        assert torch.equal(emb.weight, before), "the groups that were loaded are the ones in use"


def test_a_restore_keeps_it(tmp_path):
    tiers = te.Tiers(ddr=400, ssd=tmp_path / "ssd", store="memory")
    with make(tiers=tiers) as emb:
        rows = te.lr_optimizer(emb)
        te.checkpoint.save(emb, tmp_path / "steps", step=0)
        te.checkpoint.load(emb, tmp_path / "steps")
        assert te.lr_optimizer(emb) is rows


def test_modules_that_only_read_do_not_count():
    frozen = te.TieredEmbedding(ROWS, DIM, name="frozen", tiers=TIERS, optimizer=None)
    with frozen, make() as emb:
        rows = te.lr_optimizer(emb)
        assert te.lr_optimizer(nn.ModuleList([frozen, emb])) is rows

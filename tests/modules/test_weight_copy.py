"""module.weight is a copy that says so, where torch's weight would be written or differentiated."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiered_embed as te
from tiered_embed.modules.weight_copy import WeightCopy

ROWS, DIM = 12, 4
TIERS = te.Tiers(ddr="1MiB")
IDS = torch.tensor([[3, 1], [0, 11]])
KINDS = [te.TieredEmbedding, te.TieredEmbeddingBag]


@pytest.fixture(params=KINDS)
def emb(request):
    with request.param(ROWS, DIM, tiers=TIERS, optimizer=te.optim.SGD(lr=0.5)) as module:
        yield module


def set_data(w):
    w.data = torch.zeros(ROWS, DIM)


def set_item(w):
    w[3] = 0


def set_flag(w):
    w.requires_grad = False


def add_to(w):
    w += 1


WRITES = {
    "xavier_uniform_": nn.init.xavier_uniform_,
    "kaiming_normal_": nn.init.kaiming_normal_,
    "constant_": lambda w: nn.init.constant_(w, 1.0),
    "trunc_normal_": nn.init.trunc_normal_,
    "data.fill_": lambda w: w.data.fill_(1),
    "data.uniform_": lambda w: w.data.uniform_(-1, 1),
    "detach().zero_": lambda w: w.detach().zero_(),
    "data =": set_data,
    "item": set_item,
    "data item": lambda w: set_item(w.data),
    "+=": add_to,
    "a view": lambda w: w.T.mul_(2),
    "a row": lambda w: w[2].copy_(torch.ones(DIM)),
    "a chunk": lambda w: w.chunk(2)[0].zero_(),
    "out=": lambda w: torch.add(torch.ones(ROWS, DIM), 1, out=w),
    "index_add_": lambda w: w.index_add_(0, torch.tensor([1]), torch.ones(1, DIM)),
    "requires_grad_": lambda w: w.requires_grad_(),
    "requires_grad =": set_flag,
    "a list": lambda w: torch._foreach_zero_([w]),
    "renorm": lambda w: torch.embedding_renorm_(w, torch.tensor([1]), 0.1, 2.0),
    "max_norm": lambda w: F.embedding(torch.tensor([1]), w, max_norm=0.1),
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_it_is_refused(name, emb):
    """torch's rows would change."""
    before = emb.digest()
    with torch.no_grad():
        WRITES[name](nn.Embedding(ROWS, DIM).weight)
    with pytest.raises(te.ConfigError, match="is a copy of the rows, and writing it"):
        WRITES[name](emb.weight)
    with torch.no_grad(), pytest.raises(te.ConfigError, match=r"load_rows.*init="):
        WRITES[name](emb.weight)
    assert emb.digest() == before


HIDDEN = torch.ones(2, DIM)
USES = {
    "a penalty": lambda w, h: h.sum() + w.pow(2).sum(),
    "a penalty alone": lambda w, h: w.pow(2).sum(),
    "a norm": lambda w, h: h.sum() + torch.linalg.vector_norm(w),
    "logits": lambda w, h: (h @ w.T).sum(),
    "linear": lambda w, h: F.linear(h, w).sum(),
    "a clone": lambda w, h: (h @ w.clone().T).sum(),
    "rows": lambda w, h: (h * w[:2]).sum(),
    "lookup": lambda w, h: (F.embedding(torch.tensor([1, 2]), w) * h).sum(),
    "stacked": lambda w, h: torch.cat([h, w]).sum(),
    "normalised": lambda w, h: (F.normalize(w, dim=1)[:2] * h).sum(),
    "einsum": lambda w, h: torch.einsum("bd,vd->bv", h, w).sum(),
    "in place": lambda w, h: (h * 1).add_(w[:2]).sum(),
}


@pytest.mark.parametrize("name", USES)
def test_differentiating_through_it_is_refused(name, emb):
    """torch's rows would get a gradient."""
    theirs = nn.Embedding(ROWS, DIM)
    hidden = HIDDEN.clone().requires_grad_()
    USES[name](theirs.weight, hidden).backward()
    assert theirs.weight.grad.any()
    before = emb.digest()
    with pytest.raises(te.ConfigError, match="no gradient reaches them through it"):
        USES[name](emb.weight, hidden).backward()
    assert emb.digest() == before


@pytest.mark.parametrize("name", sorted(set(USES) - {"a penalty alone"}))
def test_what_asks_for_no_gradient_is_computed(name, emb):
    hidden = HIDDEN.clone().requires_grad_()
    plain = torch.tensor(emb.weight.tolist())
    wanted = USES[name](plain, hidden)
    with torch.no_grad():
        torch.testing.assert_close(USES[name](emb.weight, hidden), wanted.detach())
    out = USES[name](emb.weight.detach(), hidden)
    torch.testing.assert_close(out, wanted)
    out.backward()
    assert hidden.grad is not None
    assert torch.equal(USES[name](emb.weight, HIDDEN), USES[name](plain, HIDDEN))


def test_rows_that_are_only_read_are_constants_as_in_torch():
    weights = torch.rand(ROWS, DIM)
    with te.TieredEmbedding.from_pretrained(weights, tiers=TIERS) as module:
        hidden = HIDDEN.clone().requires_grad_()
        (hidden @ module.weight.T).sum().backward()
        torch.testing.assert_close(hidden.grad, weights.sum(0).expand(2, DIM))
        with pytest.raises(te.ConfigError, match="writing it"):
            module.weight.zero_()


def test_a_model_with_tied_logits_is_told_at_its_first_forward():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(ROWS, DIM)

        def forward(self, ids):
            return self.emb(ids) @ self.emb.weight.T

    model = Tied()
    wanted = model(IDS).detach()
    te.swap(model, tiers=TIERS, optimizer=te.optim.SGD(lr=0.5))
    with pytest.raises(te.ConfigError, match=r"no gradient reaches.*te.swap takes include="):
        model(IDS)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), wanted)
    torch.testing.assert_close(model.eval()(IDS), wanted)
    model.emb.close()


def test_a_copy_of_it_may_be_written(emb):
    weight = emb.weight.clone()
    weight[3] = 1
    weight.mul_(2)
    emb.load_rows(range(ROWS), weight)
    assert torch.equal(emb.weight, weight)
    assert emb.weight[3].tolist() == [2.0] * DIM


def test_it_reads_as_a_tensor(emb):
    weight = emb.weight
    assert isinstance(weight, torch.Tensor)
    assert (weight.shape, weight.dtype, weight.requires_grad) == ((ROWS, DIM), torch.float32, False)
    assert weight.numpy().tolist() == weight.tolist()
    assert torch.equal(weight.argmax(1), torch.tensor(weight.tolist()).argmax(1))
    assert type(weight.argmax(1)) is torch.Tensor
    assert "tensor" in repr(weight) or "WeightCopy" in repr(weight)
    other = torch.zeros(ROWS, DIM)
    other.copy_(weight)
    other[0] = weight[0]
    assert torch.equal(other, weight)
    file = io.BytesIO()
    torch.save({"weight": weight}, file)
    file.seek(0)
    for plain in (
        copy.deepcopy(weight),
        pickle.loads(pickle.dumps(weight)),
        torch.load(file, weights_only=True)["weight"],
    ):
        assert type(plain) is torch.Tensor
        assert torch.equal(plain, weight)
    exported = nn.Embedding.from_pretrained(weight.detach().clone(), freeze=False)
    exported(IDS).sum().backward()
    dense = nn.Embedding(ROWS, DIM)
    dense.load_state_dict({"weight": weight})
    assert torch.equal(dense.weight, weight)
    torch.testing.assert_close(dense.weight.detach(), weight)
    assert torch.allclose(dense.weight, weight)
    with torch.no_grad():
        dense.weight.zero_()
        dense.weight.copy_(weight)
    assert type(weight.half()) is WeightCopy


def test_torchs_optimizers_and_parameters_refuse_it(emb):
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        torch.optim.SGD([emb.weight], lr=0.1)
    for weight in (emb.weight, emb.weight.clone(), emb.weight * 2):
        with pytest.raises(te.ConfigError, match=r"weight is a copy.*weight.detach\(\).clone\(\)"):
            nn.Parameter(weight)
    assert type(nn.Parameter(emb.weight.detach().clone())) is nn.Parameter
    linear = nn.Linear(DIM, ROWS)
    with pytest.raises(TypeError, match="cannot assign"):
        linear.weight = emb.weight
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(emb(IDS).sum(), emb.weight)

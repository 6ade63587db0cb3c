"""The HBM tier on a CUDA device: ``make test-gpu``.

With ``TIERED_EMBED_DRY_RUN=1`` and no GPU the same tests run on the CPU, but for what only a GPU
has: that keeps them alive where there is none.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streams
import tiered_embed as te
from reference import Stream
from running import INIT, RECIPES, SEED, Prepared, Recipe, budget, make_module, reference

DRY = os.environ.get("TIERED_EMBED_DRY_RUN") == "1"
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (ON_GPU or DRY), reason="needs a CUDA device"),
]
gpu_alone = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")

DIM = 24
SIZES = ((1000, None), (20, 100), (5, 20), (1, 5))  # HBM and DDR, percent of the rows that are used
FBGEMM = (
    ("sgd", "rowwise_adagrad", "adagrad", "adam", "adamw", "lamb", "partial_rowwise_adam")
    if ON_GPU
    else ("sgd", "rowwise_adagrad", "adagrad")
)
EXACT = [kind for kind, recipe in RECIPES.items() if recipe.rounding == "nearest"]


@pytest.fixture(autouse=True)
def one_thread():
    """On the CPU FBGEMM's threads spin."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(
    stream: Stream,
    recipe: Recipe,
    sizes: tuple[int | None, int | None],
    folder: Path,
    *,
    kernel: str,
    depth: int,
    slow_ms: int = 0,
) -> tuple[str, list[torch.Tensor]]:
    """Digest and outputs of a training run; the trainer's stream sleeps before each backward."""
    hbm, ddr = (None if share is None else budget(stream, recipe, share) for share in sizes)
    tiers = te.Tiers(hbm=hbm, ddr=ddr, ssd=folder, store="memory")
    prepared = Prepared(stream)
    seen = []
    with make_module(
        stream.tables,
        tiers,
        recipe.optimizer,
        device=DEVICE,
        kernel=kernel,
        depth=depth,
        lookahead=8,
        **recipe.options(),
    ) as module:
        for i in prepared.batches(module, prefetch=True):
            args = prepared.args[i]
            out = prepared.call(module, args)
            assert all(o.device.type == DEVICE.type for o in out.values())
            seen += [o.detach().clone() for o in out.values()]
            if slow_ms and ON_GPU:
                torch.cuda._sleep(slow_ms * 1_000_000)
            grads = [prepared.gradients[i][name].to(DEVICE) for name in out]
            torch.autograd.backward(list(out.values()), grads)
        return module.digest(), [s.cpu() for s in seen]


@pytest.fixture(params=["duplicates", "generated"])
def stream(request) -> Stream:
    if request.param == "duplicates":
        return streams.duplicates(DIM)
    return streams.generated(num_batches=10, odd_dims=False)


@pytest.mark.parametrize("kind", FBGEMM)
def test_fbgemms_bits_do_not_depend_on_the_tiers(kind, stream, tmp_path):
    results = []
    for i, sizes in enumerate(SIZES):
        for depth in (0, 1, 4):
            folder = tmp_path / f"{i}-{depth}"
            results.append(run(stream, RECIPES[kind], sizes, folder, kernel="fbgemm", depth=depth))
    assert len({digest for digest, _ in results}) == 1
    for _, outputs in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0][1], outputs, strict=True))


@gpu_alone
@pytest.mark.parametrize("kind", EXACT)
def test_tritons_bits_are_the_cpus(kind, stream, tmp_path):
    recipe = RECIPES[kind]
    wanted, arrays, _ = reference(stream, recipe)
    outputs = [torch.from_numpy(o) for batch in arrays for o in batch.values()]
    for i, sizes in enumerate(SIZES):
        digest, seen = run(stream, recipe, sizes, tmp_path / str(i), kernel="triton", depth=i)
        assert digest == wanted
        assert all(torch.equal(a, b) for a, b in zip(outputs, seen, strict=True))


@pytest.mark.parametrize("kernel", ["fbgemm", pytest.param("triton", marks=gpu_alone)])
def test_a_slow_trainer_and_deep_prefetch_change_no_bit(kernel, tmp_path):
    """Moves then overlap with kernels that have not begun yet."""
    stream, recipe = streams.duplicates(DIM), RECIPES["adagrad"]
    found = set()
    for sizes in SIZES:
        for slow in (0, 5):
            folder = tmp_path / f"{sizes}{slow}"
            ran = run(stream, recipe, sizes, folder, kernel=kernel, depth=4, slow_ms=slow)
            found.add(ran[0])
    assert len(found) == 1


def make_bag(folder: Path | None = None, **options: Any) -> te.TieredEmbeddingBag:
    given = {
        "tiers": te.Tiers(hbm=40 * DIM * 8, ddr=200 * DIM * 8, ssd=folder, store="memory"),
        "optimizer": te.optim.Adagrad(lr=0.1),
        "seed": SEED,
        "init": INIT,
        "device": DEVICE,
    }
    return te.TieredEmbeddingBag(200, DIM, **(given | options))


def ids_of(seed: int, n: int = 60) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 200, (n // 3, 3)))


def test_ids_on_the_device_give_the_same_rows():
    with make_bag() as module:
        here, there = module(ids_of(1)), module(ids_of(1).to(DEVICE))
        assert torch.equal(here, there)
        assert here.device.type == DEVICE.type


def test_weights_on_the_device_get_their_gradient():
    plain = torch.nn.EmbeddingBag(200, DIM, mode="sum")
    with make_bag() as module:
        with torch.no_grad():
            plain.weight.copy_(module.rows(range(200)))
        ids, weights = ids_of(2), torch.rand(20, 3)
        grads = []
        for side, call in ((DEVICE, module), (torch.device("cpu"), plain)):
            given = weights.to(side).requires_grad_()
            call(ids, None, given).square().sum().backward()
            assert given.grad is not None
            assert given.grad.device.type == side.type
            grads.append(given.grad.cpu())
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_autocast_and_a_gradient_scaler():
    with make_bag(on_nonfinite="skip") as module:
        head = torch.nn.Linear(DIM, 1).to(DEVICE)
        dense = torch.optim.SGD(head.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**8)
        embedding = te.lr_optimizer(module, grad_scaler=scaler)
        for seed in range(4):
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss = head(module(ids_of(seed))).float().square().mean()
            scaler.scale(loss).backward()
            for optimizer in (dense, embedding):
                scaler.step(optimizer)
            scaler.update()
            assert torch.isfinite(loss)
        assert module.stats().steps > 0


def test_a_checkpoint_and_what_follows_it(tmp_path):
    digests = []
    for name in ("through", "resumed"):
        with make_bag(tmp_path / name) as module:
            for seed in range(3):
                module(ids_of(seed)).sum().backward()
            if name == "through":
                te.checkpoint.save(module, tmp_path / "saved", step=3)
            else:
                te.checkpoint.load(module, tmp_path / "saved")
            for seed in range(3, 6):
                module(ids_of(seed)).sum().backward()
            digests.append(module.digest())
    assert digests[0] == digests[1]


@gpu_alone
def test_the_dense_part_can_be_a_cuda_graph():
    with make_bag() as module:
        layers = (torch.nn.Linear(DIM, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
        head = torch.nn.Sequential(*layers)
        sample = torch.zeros(20, DIM, device=DEVICE, requires_grad=True)
        graphed = torch.cuda.make_graphed_callables(head.to(DEVICE), (sample,))
        for seed in range(3):
            graphed(module(ids_of(seed))).sum().backward()
        assert module.stats().steps == 3


@gpu_alone
def test_a_budget_beyond_the_device_is_told():
    with pytest.raises(te.CapacityError, match=r"cuda.* has no room for .* records .*lower hbm"):
        te.TieredEmbeddingBag(
            None, DIM, tiers=te.Tiers(hbm="4TiB"), optimizer=te.optim.SGD(lr=0.1), device=DEVICE
        )


@gpu_alone
def test_the_model_moves_with_its_device():
    with make_bag() as module:
        model = torch.nn.Sequential(module, torch.nn.Linear(DIM, 1)).cuda()
        assert model(ids_of(0)).is_cuda
        with pytest.raises(te.ConfigError, match="computes on cuda"):
            model.cpu()

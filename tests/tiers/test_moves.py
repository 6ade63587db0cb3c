"""The HBM tier's moves, with a stand-in for CUDA's streams and events that records their order."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import streams
import tiered_embed as te
from running import RECIPES, budget, train
from stand_in_cuda import Cuda, Event, Stream
from stepped import Steps
from tiered_embed.engine import compute
from tiered_embed.engine.executors import Executors
from tiered_embed.engine.scheduler import Scheduler
from tiered_embed.kernels.base import Bags, UpdateOptions
from tiered_embed.kernels.fbgemm import FbgemmKernel
from tiered_embed.residency.budgets import PoolSlots
from tiered_embed.residency.planner import Planner
from tiered_embed.tiers.hbm import HbmTier
from tiered_embed.tiers.host import HostTier
from tiered_embed.tiers.layout import PoolLayout
from tiered_embed.tiers.memory import MemoryTiers
from tiered_embed.tiers.moves import StreamCopies

DIM = 4
CPU = torch.device("cpu")


class Kernels(TorchDispatchMode):
    """Notes gathers, scatters and lookups in the log, with the stream that they are on."""

    def __init__(self, cuda: Cuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = {"index_select": "gather", "index_copy_": "scatter"}.get(
            func.overloadpacket.__name__
        )
        if name and self.cuda.current_stream().name == "side":
            self.cuda.log.append(f"side {name}s")
        elif "lookup" in func.overloadpacket.__name__:
            self.cuda.log.append(f"{self.cuda.current_stream().name} looks up")
        return func(*args, **(kwargs or {}))


class Rig:
    """HBM with two slots above DDR, its jobs in our hands."""

    def __init__(self) -> None:
        self.cuda = Cuda()
        layout = PoolLayout((("table", None),), DIM, te.optim.SGD(lr=0.5), te.init.Uniform(), 0)
        self.tier = HbmTier(layout, 2, StreamCopies(CPU, cuda=self.cuda))
        planner = Planner(
            layout.tables,
            PoolSlots((-1,), 0, 2, 50),
            policy="lru",
            backed=False,
            tier="HBM",
            lower_slots=50,
        )
        memory = MemoryTiers(self.tier, HostTier(layout, 50, 1), planner.first_lower_slot)
        self.scheduler = Scheduler(
            planner,
            memory,
            None,
            lookahead=0,
            depth=0,
            executors=Executors(Steps(), Steps(), Steps()),
        )
        self.kernel = FbgemmKernel(self.tier, features=[(0, "sum")])
        self.bag_layout = te._native.BagLayout([0], [0], DIM)

    def train(self, *rows: int) -> list[str]:
        """The log of one step."""
        self.cuda.log.clear()
        ids = np.array(rows, np.int64)
        with Kernels(self.cuda):
            lease = self.scheduler.stage([(0, ids)])
            bags = Bags(self.bag_layout, np.arange(len(ids) + 1), None, len(ids))
            out = torch.empty(len(ids), DIM)
            self.cuda.log.append("forward")
            sgd = te.optim.SGD(lr=0.5)
            looked_up = self.kernel.lookup(lease.plan, bags, out, 1, sgd)
            self.cuda.log.append("backward")
            grad = torch.ones_like(out)
            self.kernel.update(lease.plan, bags, grad, sgd, UpdateOptions(1), looked_up)
            lease.release(updated=True)
        return list(self.cuda.log)


def _first(log: list[str], start: str, after: int = 0) -> int:
    return next(i for i, line in enumerate(log) if i >= after and line.startswith(start))


def test_a_step_evicts_waits_fills_and_only_then_looks_up():
    rig = Rig()
    rig.train(1, 2)
    rig.train(3, 4)
    log = rig.train(1, 2)
    staged = log[: log.index("forward")]
    gathered = staged.index("side gathers")
    assert _first(staged, "side waits for trainer") < gathered, "behind the last update"
    copied = _first(staged, "side records", gathered)
    number = staged[copied].removeprefix("side records ")
    assert staged[copied + 1] == f"host waits for side {number}", staged
    assert copied + 1 < staged.index("side scatters") < len(staged) - 1
    filled = staged[-1]
    assert filled.startswith("side records"), "the newest fill has its event"
    forward = log[log.index("forward") + 1 : log.index("backward")]
    assert forward[0] == f"trainer waits for side {filled.split()[-1]}"
    assert forward[-1].startswith("trainer records")
    assert not any(line.startswith("trainer waits") for line in staged)
    backward = log[log.index("backward") + 1 :]
    assert backward[-1].startswith("trainer records"), "the next eviction waits for the update"


def test_the_trainers_stream_waits_nowhere_but_in_a_kernel(monkeypatch, tmp_path):
    """A whole run, in threads: outside the kernels' use of the tier nothing makes it wait."""
    cuda, using = Cuda(), threading.local()
    use, waits = HbmTier.use, Stream.wait_event

    @contextmanager
    def watched(self: HbmTier) -> Iterator[None]:
        using.now = True
        with use(self):
            yield
        using.now = False

    def wait_event(self: Stream, event: Event) -> None:
        assert self.name != "trainer" or getattr(using, "now", False)
        waits(self, event)

    monkeypatch.setattr(HbmTier, "use", watched)
    monkeypatch.setattr(Stream, "wait_event", wait_event)
    monkeypatch.setattr(
        compute, "_moves", lambda device: StreamCopies(device, cuda=cuda, pinned_bytes=2000)
    )
    stream, recipe = streams.duplicates(24), RECIPES["rowwise_adagrad"]
    digests = set()
    for hbm, ddr, depth in ((400, 100, 0), (1, 5, 4), (20, 20, 1)):
        tiers = te.Tiers(
            hbm=budget(stream, recipe, hbm),
            ddr=budget(stream, recipe, ddr),
            ssd=tmp_path / str(hbm),
        )
        digest, _ = train(stream, recipe, tiers, None, kernel="fbgemm", depth=depth)
        digests.add(digest)
    assert len(digests) == 1
    waited = [line for line in cuda.log if line.startswith("host waits")]
    assert waited
    assert all("side" in line for line in waited), "only copies are waited for"

"""Training programs, drawn at random, and how one of them runs: on torch's module with torch's
optimizers, or on the same model whose embedding ``te.swap`` has replaced."""

import contextlib
import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

import tiered_embed as te
from tiered_embed import checkpoint

ROWS, DIM, BAGS = 12, 4, 4
EPS = 1e-2  # large: where a gradient is next to nothing, its rounding must not decide an update
SPECS: dict[str, Any] = {
    "sgd": te.optim.SGD(lr=0.1),
    "adagrad": te.optim.Adagrad(lr=0.1, eps=EPS),
    "adam": te.optim.Adam(lr=0.02, eps=EPS),
}
PEERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=EPS),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, eps=EPS),
}


@dataclass(frozen=True)
class Step:
    """One step of the optimizer, and what comes before it.

    freeze: by what means, and whether on or off. restore: the state is handed over to a model on
    other tiers. parts: micro batches. forget: the gradients are not zeroed afterwards.
    """

    freeze: tuple[str, bool] | None = None
    late_freeze: bool = False  # between forward and backward
    evaluate: bool = False
    restore: str | None = None
    parts: int = 1
    forget: bool = False
    without_rows: bool = False  # a backward pass in which the embedding has no part


@dataclass(frozen=True)
class Program:
    """What the user wrote. ``Step`` has what differs from step to step."""

    update: str
    kind: str
    embedding: bool  # nn.Embedding, else nn.EmbeddingBag
    mode: str
    padding: bool
    small: bool  # a cache for a part of the rows
    prefetch: bool
    calls: int  # of the module in one loss
    losses: int
    together: bool  # they are added before one backward
    wrapped: bool  # te.accumulate around the parts
    weighted: bool
    scaler: bool
    schedule: str | None
    clip: str | None
    set_to_none: bool
    reuse: bool  # of one buffer for all batches
    default_dtype: torch.dtype
    autocast: bool
    seed: int
    steps: tuple[Step, ...] = field(default_factory=tuple)

    @property
    def told(self) -> str | None:
        """What is said, where the fused update differs from torch; else the two are equal."""
        if self.update == "step":
            return None
        if self.clip:
            return "clip_global_norm="
        sums = any(s.parts > 1 for s in self.steps) or (self.losses > 1 and not self.together)
        if (sums and not self.wrapped) or any(s.forget for s in self.steps):
            return "te.accumulate"
        return None


@st.composite
def steps(draw: st.DrawFn, update: str, kind: str) -> Step:
    seldom = st.integers(0, 7).map(lambda n: n == 0)
    means = st.sampled_from(["module", "model", "parameters"])
    freeze = (draw(means), draw(st.booleans())) if draw(st.integers(0, 3)) == 0 else None
    # Adam's step count is no part of what load_rows takes.
    ways = ["checkpoint", "rows"] if kind != "adam" else ["checkpoint"]
    return Step(
        freeze=freeze,
        late_freeze=draw(seldom),
        evaluate=draw(st.integers(0, 3)) == 0,
        restore=draw(st.sampled_from(ways)) if draw(seldom) else None,
        parts=draw(st.sampled_from([1, 1, 2, 4])),
        forget=update == "step" and draw(seldom),
        without_rows=draw(seldom),
    )


@st.composite
def programs(draw: st.DrawFn) -> Program:
    update = draw(st.sampled_from(["backward", "step"]))
    kind = draw(st.sampled_from(sorted(SPECS)))
    embedding = draw(st.booleans())
    # With Adam every step touches all rows (torch's moves them all), which a maximum hides.
    mode = "sum" if embedding else draw(st.sampled_from(["sum", "mean", "max"]))
    losses = draw(st.sampled_from([1, 1, 2]))
    program = Program(
        update=update,
        kind=kind,
        embedding=embedding,
        mode=mode,
        padding=draw(st.booleans()) and kind != "adam",
        small=draw(st.booleans()),
        prefetch=draw(st.booleans()),
        calls=draw(st.sampled_from([1, 1, 2, 3])),
        losses=losses,
        together=draw(st.booleans()),
        wrapped=draw(st.integers(0, 7)) > 0,
        weighted=mode == "sum" and not embedding and draw(st.booleans()),
        scaler=draw(st.integers(0, 3)) == 0,
        schedule=draw(st.sampled_from([None, "step", "warm up"])),
        clip=draw(st.sampled_from([None, None, "norm", "value"]))
        if update == "step" or draw(st.integers(0, 7)) == 0
        else None,
        # Gradients of zero move what a dense Adam holds, frozen or not; here they are dropped.
        set_to_none=kind == "adam" or draw(st.integers(0, 3)) > 0,
        reuse=draw(st.booleans()),
        default_dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.float64])),
        # Rounded to bfloat16, a small gradient has any sign, which decides Adagrad's first step.
        autocast=kind == "sgd" and draw(st.integers(0, 3)) == 0,
        seed=draw(st.integers(0, 2**20)),
        steps=tuple(draw(st.lists(steps(update, kind), min_size=2, max_size=6))),
    )
    if program.told is None:
        return program
    # An optimizer is watched from its second step on.
    plain = Step(freeze=("module", False), parts=2 if program.told == "te.accumulate" else 1)
    return replace(program, steps=(*program.steps, plain, plain))


class Model(nn.Module):
    def __init__(self, program: Program) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(program.seed)
        weight = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float32)
        padding = 3 if program.padding else None
        self.emb: Any
        if program.embedding:
            self.emb = nn.Embedding(ROWS, DIM, padding, _weight=weight)
        else:
            self.emb = nn.EmbeddingBag(
                ROWS, DIM, mode=program.mode, padding_idx=padding, _weight=weight
            )
        self.head = nn.Linear(DIM, 2, dtype=torch.float32)
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float32))
        with torch.no_grad():
            self.head.weight.copy_(
                torch.randn(2, DIM, generator=generator, dtype=torch.float32) / 2
            )
            self.head.bias.zero_()
        self.program = program

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (calls, bags, 3) -> (bags, 2)."""
        out = None
        for one in ids:
            if self.program.embedding:
                rows = self.emb(one).sum(1)
            elif self.program.weighted:
                rows = self.emb(one, None, self.scale.expand(BAGS, 3))
            else:
                rows = self.emb(one)
            out = rows if out is None else out * rows.sin() + out
        assert out is not None
        return self.head(out)


def ids_of(program: Program, number: int) -> torch.Tensor:
    """Of a micro batch: (calls, bags, 3). With Adam, the first call has every row."""
    generator = torch.Generator().manual_seed(1000 * program.seed + number)
    ids = torch.randint(0, ROWS, (program.calls, BAGS, 3), generator=generator)
    if program.kind == "adam":
        ids[0] = torch.randperm(ROWS, generator=generator).view(BAGS, 3)
    return ids


class Run:
    """A program that runs. Subclasses say what differs between torch and tiers."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.model = Model(program)
        self.outputs: list[torch.Tensor] = []
        self.number = 0  # micro batches so far
        self.frozen = False

    # --- what differs ---

    def optimizers(self) -> list[torch.optim.Optimizer]:
        raise NotImplementedError

    def accumulate(self) -> Any:
        return contextlib.nullcontext()

    def batches(self, numbers: range) -> Iterator[torch.Tensor]:
        yield from (ids_of(self.program, n) for n in numbers)

    def restore(self, how: str) -> None:
        """Training goes on elsewhere; torch has only one place."""

    # --- what does not ---

    def prepare(self) -> None:
        """Makes the optimizers, and what belongs to them, or makes them anew."""
        self.steppers = self.optimizers()
        enabled = self.program.scaler
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=enabled)
        self.know_scaler()
        self.schedules = [self.scheduler(o) for o in self.steppers]

    def know_scaler(self) -> None:
        pass

    def scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        kinds = torch.optim.lr_scheduler
        if self.program.schedule == "step":
            return kinds.StepLR(optimizer, 2, 0.5)
        if self.program.schedule == "warm up":
            return kinds.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
        return None

    def run(self) -> None:
        self.prepare()
        steps = self.program.steps
        first = 0
        while first < len(steps):
            last = first + 1
            while last < len(steps) and steps[last].restore is None:
                last += 1
            how = steps[first].restore
            if how is not None:
                self.restore(how)
            self.steps_of_one_loop(steps[first:last])
            first = last

    def steps_of_one_loop(self, steps: tuple[Step, ...]) -> None:
        numbers = range(self.number, self.number + sum(s.parts for s in steps))
        loop = self.batches(numbers)
        buffer = torch.zeros(self.program.calls, BAGS, 3, dtype=torch.int64)
        for step in steps:
            self.before(step)
            with self.accumulate():
                for _ in range(step.parts):
                    ids = next(loop)
                    if self.program.reuse and not self.program.prefetch:
                        ids = buffer.copy_(ids)
                    self.part(step, ids)
                    self.number += 1
            self.after(step)
        assert next(loop, None) is None

    def before(self, step: Step) -> None:
        if step.freeze is not None:
            self.freeze(*step.freeze)
        if step.evaluate:
            self.model.eval()
            self.outputs.append(self.model(ids_of(self.program, self.number + 77)).detach())
            self.model.train()
            with torch.no_grad():
                self.outputs.append(self.model(ids_of(self.program, self.number + 78)))

    def freeze(self, how: str, on: bool) -> None:
        self.frozen = on
        if how == "module":
            self.model.emb.requires_grad_(not on)
        elif how == "model":  # the head goes on training: something must
            self.model.requires_grad_(not on)
            self.model.head.requires_grad_(True)
        else:
            for parameter in self.model.emb.parameters():
                parameter.requires_grad = not on

    def part(self, step: Step, ids: torch.Tensor) -> None:
        program = self.program
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=program.autocast):
            out = self.model(ids).float()
        self.outputs.append(out.detach())
        if step.late_freeze:
            self.freeze("module", not self.frozen)
        losses = [out.square().mean(), out.cos().mean()][: program.losses]
        if program.together:
            losses = [torch.stack(losses).sum()]
        for i, loss in enumerate(losses):
            self.scaler.scale(loss).backward(retain_graph=i + 1 < len(losses))
        if step.without_rows:
            self.scaler.scale(
                self.model.head(torch.ones(1, DIM, dtype=torch.float32)).mean()
            ).backward()

    def after(self, step: Step) -> None:
        program = self.program
        for optimizer in self.steppers:
            if _has_gradients(optimizer):
                self.scaler.unscale_(optimizer)
        if program.clip == "norm":
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.3)
        elif program.clip == "value":
            nn.utils.clip_grad_value_(self.model.parameters(), 0.05)
        for optimizer in self.steppers:
            if _has_gradients(optimizer):
                self.scaler.step(optimizer)
            else:
                optimizer.step()
        self.scaler.update()
        for schedule in self.schedules:
            if schedule is not None:
                schedule.step()
        if not step.forget:
            for optimizer in self.steppers:
                optimizer.zero_grad(set_to_none=program.set_to_none)

    def weights(self) -> list[torch.Tensor]:
        dense = [*self.model.head.parameters(), self.model.scale]
        return [p.detach().clone() for p in (self.model.emb.weight, *dense)]


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(p.grad is not None for g in optimizer.param_groups for p in g["params"])


class Torch(Run):
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [PEERS[self.program.kind](self.model.parameters())]

    def restore(self, how: str) -> None:
        """The rows go on as they are; a gradient that nobody dropped is in no checkpoint."""
        self.model.emb.weight.grad = None


class Tiered(Run):
    def __init__(self, program: Program, folder: Path) -> None:
        super().__init__(program)
        self._folder = folder
        self._made = 0
        self._plain = copy.deepcopy(self.model)
        self.swap(self.model)

    def swap(self, model: Model) -> None:
        small = self.program.small
        if self._made:  # somewhere else
            small = not small
        record = 4 * (DIM + SPECS[self.program.kind].state_floats(DIM))
        ssd = self._folder / str(self._made)
        te.swap(
            model,
            tiers=te.Tiers(ddr=record * (5 if small else ROWS), ssd=ssd, store="memory"),
            optimizer=SPECS[self.program.kind],
            update=self.program.update,
            lookahead=4,
            depth=1 + self._made % 2,
            num_threads=1,
        )
        self._made += 1

    def optimizers(self) -> list[torch.optim.Optimizer]:
        dense = PEERS[self.program.kind](self.model.parameters())
        if self.program.update == "step":
            return [te.row_optimizer(self.model, dense)]
        return [dense, te.lr_optimizer(self.model)]

    def know_scaler(self) -> None:
        updates = self.model.emb.engine.updates
        if self.program.scaler and self.program.update == "backward":
            updates.grad_scaler = self.scaler

    def accumulate(self) -> Any:
        if self.program.wrapped and self.program.update == "backward":
            return te.accumulate(self.model)
        return contextlib.nullcontext()

    def batches(self, numbers: range) -> Iterator[torch.Tensor]:
        loader = list(super().batches(numbers))
        if not self.program.prefetch:
            yield from loader
            return
        weights = self.model.scale.detach().expand(BAGS, 3) if self.program.weighted else None

        def ids(batch: torch.Tensor) -> dict[Any, Any]:
            one = batch[0]
            return {self.model.emb: one if weights is None else (one, None, weights)}

        yield from te.prefetch(loader, self.model, ids=ids)

    def restore(self, how: str) -> None:
        before, model = self.model, copy.deepcopy(self._plain)
        if how == "checkpoint":
            checkpoint.save(before, self._folder / "saved", step=self._made)
        self.swap(model)
        ours, theirs = model.emb, before.emb
        if how == "checkpoint":
            checkpoint.load(model, self._folder / "saved")
        else:
            every = range(ROWS)
            ours.load_rows(every, theirs.rows(every), theirs.optimizer_state(every))
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.requires_grad = other.requires_grad
        theirs.close()
        self.hand_over(before, model)

    def hand_over(self, before: Model, model: Model) -> None:
        """The dense part and its optimizer go on as they are; the rows have a new module."""
        rates = [g["lr"] for o in self.steppers for g in o.param_groups]
        before.emb = model.emb
        old = self.steppers[0]
        self.steppers = self.optimizers()
        for p in (before.head.weight, before.head.bias, before.scale):
            if p in old.state:
                self.steppers[0].state[p] = old.state[p]
        for group, rate in zip(
            (g for o in self.steppers for g in o.param_groups), rates, strict=True
        ):
            group["lr"] = rate
        self.know_scaler()
        past = [s.state_dict() if s is not None else None for s in self.schedules]
        for optimizer in self.steppers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        self.schedules = [self.scheduler(o) for o in self.steppers]
        for schedule, state_dict in zip(self.schedules, past, strict=True):
            if schedule is not None and state_dict is not None:
                schedule.load_state_dict(state_dict)
        for group, rate in zip(
            (g for o in self.steppers for g in o.param_groups), rates, strict=True
        ):
            group["lr"] = rate


class Said(logging.Handler):
    """What the package says inside the context."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> "Said":
        logging.getLogger("tiered_embed").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("tiered_embed").removeHandler(self)

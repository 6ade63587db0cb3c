"""Trainers that other people wrote, with update="step": clipping, accumulation of 4, warm-up and
mixed precision reach the rows as they reach torch's own embedding.

``pip install tiered_embed[trainers]`` has the trainers; what is missing is skipped.
"""

import contextlib
import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

import tiered_embed as te
from small import DIM, ROWS

STEPS, PARTS = 50, 4
pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own

SPECS: dict[str, Any] = {
    "adagrad": te.optim.Adagrad(lr=0.1, eps=1e-10),
    "adam": te.optim.Adam(lr=0.01, eps=1e-6),
}
PEERS: dict[str, Any] = {
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-10),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-6),
}


def needs(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install tiered_embed[trainers]")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.emb = nn.EmbeddingBag(
            ROWS, DIM, mode="sum", _weight=torch.randn(ROWS, DIM, generator=generator)
        )
        self.head = nn.Linear(DIM, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(1, DIM, generator=generator))

    def forward(self, ids: torch.Tensor, labels: Any = None, **_: Any) -> dict[str, torch.Tensor]:
        return {"loss": (self.head(self.emb(ids)) - 1).square().mean()}


def batches() -> list[dict[str, torch.Tensor]]:
    """Each has every row: a dense Adam also moves those that a step does not touch."""
    out = []
    for b in range(STEPS * PARTS):
        generator = torch.Generator().manual_seed(b)
        out.append({"ids": torch.randperm(ROWS, generator=generator).view(10, 3)})
    return out


class Ids(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """One bag per entry."""

    def __init__(self) -> None:
        self.rows = torch.cat([batch["ids"] for batch in batches()])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"ids": self.rows[i]}


def both(kind: str) -> list[tuple[Model, torch.optim.Optimizer]]:
    """(model, its one optimizer): over tiers, and of torch alone."""
    peer = Model()
    ours = copy.deepcopy(peer)
    te.swap(ours, tiers=te.Tiers(ddr="1MiB"), optimizer=SPECS[kind], update="step")
    dense = PEERS[kind](ours.parameters())
    return [(ours, te.row_optimizer(ours, dense)), (peer, PEERS[kind](peer.parameters()))]


def check(pair: list[tuple[Model, torch.optim.Optimizer]]) -> None:
    (ours, _), (peer, _) = pair
    assert isinstance(ours.emb, te.TieredEmbeddingBag)
    for mine, wanted in (
        (ours.emb.weight, peer.emb.weight),
        (ours.head.weight, peer.head.weight),
    ):
        torch.testing.assert_close(mine.detach(), wanted.detach(), rtol=0, atol=1e-5)
    assert (peer.emb.weight - Model().emb.weight).abs().mean() > 1e-3
    assert ours.emb.stats().steps == STEPS
    ours.emb.close()


def warm_up(optimizer: torch.optim.Optimizer) -> schedules.LambdaLR:
    return schedules.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))


class CpuScaler:
    """Makes ``torch.cuda.amp.GradScaler`` of libraries one for the CPU."""

    def __new__(cls) -> Any:
        return torch.amp.GradScaler("cpu", 2.0**12, growth_interval=9)


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("scaled", [False, True])
def test_accelerate(kind, scaled):
    needs("accelerate")
    import accelerate

    pair = both(kind)
    for model, optimizer in pair:
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=PARTS)
        if scaled:
            accelerator.scaler = CpuScaler()
        loader = torch.utils.data.DataLoader(batches(), batch_size=None)
        prepared = accelerator.prepare(model, optimizer, loader, warm_up(optimizer))
        accelerated, stepper, loader, schedule = prepared
        if scaled:
            stepper.scaler = accelerator.scaler
            accelerator.native_amp = True
        for batch in loader:
            with accelerator.accumulate(accelerated):
                accelerator.backward(accelerated(**batch)["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(accelerated.parameters(), 0.5)
                stepper.step()
                schedule.step()
                stepper.zero_grad()
    check(pair)


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("scaled", [False, True])
def test_lightning(kind, scaled, tmp_path):
    needs("lightning")
    import lightning
    from lightning.pytorch.plugins import MixedPrecision

    class Module(lightning.LightningModule):
        def __init__(self, model: Model, optimizer: torch.optim.Optimizer) -> None:
            super().__init__()
            self.model, self.made = model, [optimizer]

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            (optimizer,) = self.made
            every_step = {"scheduler": warm_up(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": every_step}

    class OnlyScaled(MixedPrecision):
        def autocast_context_manager(self) -> Any:
            # In float16 the two models would differ by its rounding.
            return contextlib.nullcontext()

    pair = both(kind)
    for model, optimizer in pair:
        plugins = []
        if scaled:
            plugins.append(OnlyScaled("16-mixed", "cpu", CpuScaler()))
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            gradient_clip_val=0.5,
            accumulate_grad_batches=PARTS,
            plugins=plugins,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        loader = torch.utils.data.DataLoader(batches(), batch_size=None)
        trainer.fit(Module(model, optimizer), loader)
    check(pair)


@pytest.mark.parametrize("kind", SPECS)
def test_transformers(kind, tmp_path):
    """Its own clipping to 1.0, which is its default."""
    needs("transformers")
    needs("accelerate")
    import accelerate
    import transformers

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    pair = both(kind)
    for i, (model, optimizer) in enumerate(pair):
        accelerate.state.AcceleratorState._reset_state(True)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / str(i)),
            use_cpu=True,
            per_device_train_batch_size=10,
            gradient_accumulation_steps=PARTS,
            num_train_epochs=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = InOrder(
            model=model,
            args=arguments,
            train_dataset=Ids(),
            optimizers=(optimizer, warm_up(optimizer)),
        )
        trainer.train()
    check(pair)


def test_transformers_own_optimizer_is_refused(tmp_path):
    """It takes every parameter, and would move the rows of no table."""
    needs("transformers")
    needs("accelerate")
    import transformers

    (ours, _), _ = both("adam")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        max_steps=2,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(model=ours, args=arguments, train_dataset=Ids())
    with pytest.raises(te.ConfigError, match=r"te\.row_optimizer"):
        trainer.train()
    ours.emb.close()

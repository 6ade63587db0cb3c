"""Options of single tables: each trains as it would in a module of its own, and as in torch."""

import tempfile
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiered_embed as te

ROWS, BATCH, STEPS = 40, 6, 4
SEED = 2**33 + 5
MODULE: dict[str, Any] = {
    "optimizer": te.optim.Adagrad(lr=0.05),
    "init": te.init.Uniform(-0.5, 0.5),
    "dtype": torch.float32,
}
OPTIMIZERS = (
    te.optim.SGD(lr=0.1),
    te.optim.Adagrad(lr=0.2),
    te.optim.Adam(lr=0.05),
    te.optim.RowWiseAdagrad(lr=0.1, weight_decay=0.01),
)
EVERY = range(ROWS)


def table(name: str, dim: int = 4, **own: Any) -> te.TableConfig:
    return te.TableConfig(name, ROWS, dim, **own)


def collection(tables: list[te.TableConfig], tiers: te.Tiers, **options: Any) -> Any:
    given = {**MODULE, "seed": SEED, "num_threads": 1, "output_dtype": torch.float32, **options}
    return te.TieredEmbeddingBagCollection(tables, tiers=tiers, **given)


def alone(config: te.TableConfig) -> te.TieredEmbeddingBag:
    """The table in a module of its own, which has the table's options."""
    optimizer = config.optimizer or MODULE["optimizer"]
    return te.TieredEmbeddingBag(
        ROWS,
        config.embedding_dim,
        config.mode,
        name=config.name,
        tiers=te.Tiers(ddr="1MiB"),
        optimizer=replace(optimizer, lr=optimizer.lr * config.lr_factor)
        if config.trainable
        else None,
        init=config.init or MODULE["init"],
        dtype=config.dtype or MODULE["dtype"],
        output_dtype=torch.float32,
        seed=SEED,
        num_threads=1,
    )


def batches(tables: list[te.TableConfig], seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {t.name: torch.randint(0, ROWS, (BATCH, 3), generator=generator) for t in tables}
        for _ in range(STEPS)
    ]


def weight_of(out: torch.Tensor, step: int) -> torch.Tensor:
    """A gradient for an output."""
    return torch.linspace(-1, 1, out.numel()).view_as(out) * (step + 1)


def train(module: Any, tables: list[te.TableConfig], seed: int, *, prefetch: bool) -> list[Any]:
    """Trains a collection; returns its outputs."""
    given, outputs = batches(tables, seed), []
    loop = te.prefetch(given, module, ids=lambda b: {module: b}) if prefetch else given
    for step, batch in enumerate(loop):
        out = module(batch)
        outputs.append({name: part.detach().clone() for name, part in out.items()})
        loss = sum((part * weight_of(part, step)).sum() for part in out.values())
        if loss.requires_grad:  # some table trains
            loss.backward()
    return outputs


def train_alone(tables: list[te.TableConfig], seed: int) -> tuple[dict[str, Any], list[Any]]:
    modules = {t.name: alone(t) for t in tables}
    outputs: list[Any] = []
    for step, batch in enumerate(batches(tables, seed)):
        outputs.append({})
        for name, module in modules.items():
            out = module(batch[name])
            outputs[-1][name] = out.detach().clone()
            if out.requires_grad:
                (out * weight_of(out, step)).sum().backward()
    return modules, outputs


@st.composite
def configs(draw: st.DrawFn) -> list[te.TableConfig]:
    tables = []
    for i in range(draw(st.integers(2, 5))):
        trainable = draw(st.sampled_from([True, True, False]))
        dtypes = [None, torch.float32, torch.float16, torch.bfloat16]
        tables.append(
            table(
                f"t{i}",
                draw(st.sampled_from([1, 4, 17])),
                mode=draw(st.sampled_from(["sum", "mean", "max"])),
                optimizer=draw(st.sampled_from([None, *OPTIMIZERS])),
                init=draw(st.sampled_from([None, te.init.Constant(0.25), te.init.Uniform(0, 1)])),
                dtype=draw(st.sampled_from(dtypes if trainable else [*dtypes, torch.int8])),
                lr_factor=draw(st.sampled_from([1.0, 1.0, 0.5, 0.0])),
                trainable=trainable,
            )
        )
    return tables


@settings(deadline=None, derandomize=True, print_blob=True, max_examples=60)
@given(configs(), st.booleans(), st.sampled_from(["lru", "lookahead"]), st.integers(0, 99))
def test_drawn_tables_train_as_alone(tables, prefetch, policy, seed):
    """Outputs in training and in evaluation, rows and state are the same bits, with a cache that is
    far too small as well."""
    least = 16 * len(tables) * 4 * (2 * 17 + 17)
    modules, outputs = train_alone(tables, seed)
    with tempfile.TemporaryDirectory() as folder:
        tiers = te.Tiers(ddr=least, ssd=folder, store="memory")
        with collection(tables, tiers, policy=policy, lookahead=2, depth=1) as module:
            got = train(module, tables, seed, prefetch=prefetch)
            for step, (mine, theirs) in enumerate(zip(got, outputs, strict=True)):
                for name in theirs:
                    assert torch.equal(mine[name], theirs[name]), f"step {step}, table {name!r}"
            module.eval()
            asked = batches(tables, seed + 1)
            loop = te.prefetch(asked, module, ids=lambda b: {module: b}) if prefetch else asked
            for batch in loop:
                with torch.no_grad():
                    out = module(batch)
                    for name, other in modules.items():
                        assert torch.equal(out[name], other.eval()(batch[name])), name
            for name, other in modules.items():
                rows, expected = module.rows(EVERY, name), other.rows(EVERY)
                assert rows.dtype == expected.dtype
                assert torch.equal(rows, expected), name
                state, wanted = module.optimizer_state(EVERY, name), other.optimizer_state(EVERY)
                assert list(state) == list(wanted)
                assert all(torch.equal(state[k], wanted[k]) for k in wanted), name
    for other in modules.values():
        other.close()


def test_tables_train_as_in_torch():
    """Parameter groups of torch's optimizers, over ``nn.EmbeddingBag``."""
    tables = [
        table("sgd", optimizer=te.optim.SGD(lr=0.1)),
        table("slow", optimizer=te.optim.SGD(lr=0.1), lr_factor=0.25),
        table("adagrad", optimizer=te.optim.Adagrad(lr=0.2, eps=1e-10)),
        table("frozen", trainable=False),
    ]
    with collection(tables, te.Tiers(ddr="1MiB")) as module:
        bags = {
            t.name: nn.EmbeddingBag(ROWS, 4, mode="sum", _weight=module.rows(EVERY, t.name))
            for t in tables
        }
        start = module.rows(EVERY, "frozen")
        bags["frozen"].weight.requires_grad_(False)
        optimizers = [
            torch.optim.SGD(
                [
                    {"params": bags["sgd"].parameters()},
                    {"params": bags["slow"].parameters(), "lr": 0.025},
                ],
                lr=0.1,
            ),
            torch.optim.Adagrad(bags["adagrad"].parameters(), lr=0.2, eps=1e-10),
        ]
        for step, batch in enumerate(batches(tables, 3)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            out = module(batch)
            theirs = {name: bag(batch[name]) for name, bag in bags.items()}
            for outputs in (out, theirs):
                sum((part * weight_of(part, step)).sum() for part in outputs.values()).backward()
            for name in theirs:
                torch.testing.assert_close(out[name], theirs[name], rtol=1e-5, atol=1e-6)
            for optimizer in optimizers:
                optimizer.step()
        for name, bag in bags.items():
            torch.testing.assert_close(module.rows(EVERY, name), bag.weight.detach())
        assert torch.equal(module.rows(EVERY, "frozen"), start)


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.1}])
def test_frozen_rows_are_never_materialised(tmp_path, options):
    tables = [table("frozen", trainable=False), table("other")]
    with collection(tables, te.Tiers(ddr=2048, ssd=tmp_path), **options) as module:
        train(module, tables, 1, prefetch=True)
        module.flush()
        counts = module.stats().tables
        assert counts["frozen"].written_back == 0 < counts["other"].written_back
        frozen, other = module.engine.pools
        assert not list(frozen.materialised(0))
        assert list(other.materialised(0))


@pytest.mark.parametrize("weighted", [False, True])
def test_max_norm_changes_only_rows_that_train(weighted):
    """Frozen rows are scaled for a lookup and stay, in the weights' gradient as in the output."""
    tables = [table("frozen", trainable=False), table("free")]
    with collection(tables, te.Tiers(ddr="1MiB"), max_norm=0.3) as module:
        before = {t.name: module.rows(EVERY, t.name) for t in tables}
        ids, offsets = torch.arange(ROWS), torch.arange(ROWS)
        weights = torch.ones(ROWS, requires_grad=weighted)
        out = module({t.name: (ids, offsets, weights) for t in tables})
        factor = (0.3 / (before["frozen"].norm(dim=1, keepdim=True) + 1e-7)).clamp(max=1)
        scaled = before["frozen"] * factor
        torch.testing.assert_close(out["frozen"], scaled)
        sum(part.sum() for part in out.values()).backward()
        assert torch.equal(module.rows(EVERY, "frozen"), before["frozen"])
        assert not torch.equal(module.rows(EVERY, "free"), before["free"])
        if weighted:
            free = before["free"] * (0.3 / (before["free"].norm(dim=1, keepdim=True) + 1e-7)).clamp(
                max=1
            )
            torch.testing.assert_close(weights.grad, scaled.sum(1) + free.sum(1))


def test_a_global_norm_belongs_to_one_optimizer():
    """Tables that share an optimizer share its norm, whatever their factors; others do not add."""
    clipped = te.optim.SGD(lr=1.0, clip_global_norm=1.0)
    tables = [
        table("a", optimizer=clipped),
        table("b", optimizer=clipped, lr_factor=0.5),
        table("c", optimizer=te.optim.SGD(lr=1.0)),
    ]
    with collection(tables, te.Tiers(ddr="1MiB"), init=te.init.Constant(0.0)) as module:
        out = module({t.name: torch.tensor([[1]]) for t in tables})
        (3 * out["a"].sum() + 4 * out["b"].sum() + 100 * out["c"].sum()).backward()
        norm = (4 * 3**2 + 4 * 4**2) ** 0.5 + 1e-6
        for name, expected in (("a", -3 / norm), ("b", -0.5 * 4 / norm), ("c", -100.0)):
            rows = module.rows([1], name)
            torch.testing.assert_close(rows, torch.full((1, 4), expected), msg=name)


def test_schedules_and_accumulation_reach_every_optimizer():
    tables = [
        table("a", optimizer=te.optim.SGD(lr=1.0)),
        table("b", optimizer=te.optim.SGD(lr=1.0), lr_factor=0.5),
        table("c", optimizer=te.optim.SGD(lr=0.1)),
        table("d", trainable=False),
    ]
    with collection(tables, te.Tiers(ddr="1MiB"), init=te.init.Constant(0.0)) as module:
        rows = te.lr_optimizer(module)
        assert [(g["name"], g["lr"]) for g in rows.param_groups] == [("a, b", 1.0), ("c", 0.1)]
        schedule = torch.optim.lr_scheduler.StepLR(rows, 1, gamma=0.1)
        batch = {t.name: torch.tensor([[1]]) for t in tables}
        sum(out.sum() for out in module(batch).values()).backward()
        rows.step()
        schedule.step()
        with te.accumulate(module):
            for _ in range(2):
                sum(out.sum() for out in module(batch).values()).backward()
        assert module.stats().steps == 2
        got = {t.name: module.rows([1], t.name)[0, 0].item() for t in tables}
        expected = {"a": -1.0 - 0.2, "b": -0.5 - 0.1, "c": -0.1 - 0.02, "d": 0.0}
        assert got == pytest.approx(expected)


def test_a_scaler_skips_a_step_of_all_tables():
    tables = [table("a"), table("b", optimizer=te.optim.SGD(lr=1.0)), table("c", trainable=False)]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with collection(tables, te.Tiers(ddr="1MiB")) as module:
        rows = te.lr_optimizer(module, scaler)
        before = module.rows(EVERY, "a")
        out = module({t.name: torch.tensor([[1]]) for t in tables})
        scaler.scale(out["a"].sum() + (out["b"] * float("inf")).sum()).backward()
        scaler.step(rows)
        scaler.update()
        assert torch.equal(module.rows(EVERY, "a"), before)
        assert scaler.get_scale() == 2.0
        assert module.stats().skipped == 1


def mixed_tables() -> list[te.TableConfig]:
    return [
        table("a", optimizer=te.optim.SGD(lr=0.1)),
        table("b", dtype=torch.float16, init=te.init.Constant(0.5)),
        table("c", lr_factor=0.5),
        table("d", trainable=False, dtype=torch.int8),
        table("e"),
    ]


def test_a_checkpoint_and_a_directory_hold_every_kind(tmp_path):
    tables = mixed_tables()

    def make(name: str, tables: list[te.TableConfig] = tables) -> Any:
        return collection(tables, te.Tiers(ddr=8192, ssd=tmp_path / name))

    with make("one") as module:
        train(module, tables, 1, prefetch=True)
        te.checkpoint.save(module, tmp_path / "saved", step=1)
        te.checkpoint.verify(tmp_path / "saved")
        saved = module.digest()
        train(module, tables, 2, prefetch=True)
        final = module.digest()
        assert final != saved
    with make("one") as module:
        assert module.digest() == final
    with make("two") as module:
        te.checkpoint.load(module, tmp_path / "saved")
        assert module.digest() == saved
        train(module, tables, 2, prefetch=True)
        assert module.digest() == final
    other = [replace(tables[0], optimizer=te.optim.Adam(lr=0.1)), *tables[1:]]
    with (
        make("three", other) as module,
        pytest.raises(te.ConfigError, match="build the model as it was saved"),
    ):
        te.checkpoint.load(module, tmp_path / "saved")
    with pytest.raises(te.ConfigError, match="another record layout"):
        make("one", other)


def test_tables_without_options_share_a_pool_as_before(tmp_path):
    """Options that say what the module says anyway change no pool and no folder."""
    plain = [table("a"), table("b")]
    same = [table("a", **MODULE), table("b", lr_factor=1.0)]
    with collection(plain, te.Tiers(ddr=8192, ssd=tmp_path)) as module:
        train(module, plain, 1, prefetch=False)
        digest = module.digest()
        assert len(module.engine.pools) == 1
    with collection(same, te.Tiers(ddr=8192, ssd=tmp_path)) as module:
        assert module.digest() == digest
    assert len(list(tmp_path.glob("pool-*"))) == 1


def test_outputs_have_the_dtype_that_torch_promotes_to():
    half, brain, whole = torch.float16, torch.bfloat16, torch.float32
    for types, expected in (
        ((half, half), half),
        ((half, brain), whole),
        ((half, None), whole),
        ((torch.int8, half), whole),
    ):
        tables = [table(f"t{i}", dtype=d, trainable=False) for i, d in enumerate(types)]
        with collection(tables, te.Tiers(ddr="1MiB"), output_dtype=None) as module:
            out = module({t.name: torch.tensor([[1]]) for t in tables})
            assert {part.dtype for part in out.values()} == {expected}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"optimizer": "adam"}, r"table 't': optimizer is 'adam'; pass one of te\.optim"),
        ({"init": 0.5}, r"table 't': init is 0\.5; pass te\.init\.Uniform"),
        ({"dtype": torch.int64}, r"table 't': dtype is torch\.int64; rows are"),
        ({"lr_factor": -1}, r"table 't': lr_factor is -1; it must be finite and at least 0"),
        ({"lr_factor": float("nan")}, "lr_factor is nan"),
        ({"lr_factor": "2"}, "lr_factor is '2'; it must be a number"),
        ({"lr_factor": True}, "lr_factor is True; it must be a number"),
        ({"trainable": 1}, "trainable is 1; pass True or False"),
    ],
)
def test_bad_options_are_refused(own, message):
    with pytest.raises(te.ConfigError, match=message):
        table("t", **own)


def test_options_that_do_not_go_together_are_refused():
    tiers = te.Tiers(ddr="1MiB")
    with pytest.raises(te.ConfigError, match=r"table 't': int8 rows .* trainable=False"):
        collection([table("t", dtype=torch.int8)], tiers)
    frozen = table("t", dtype=torch.int8, trainable=False)
    with pytest.raises(te.ConfigError, match=r"table 't': int8 rows .* max_norm"):
        collection([frozen], tiers, max_norm=1.0)

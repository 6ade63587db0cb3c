"""Bad input gets the documented error, with the fact, the numbers and the remedy; nothing changes.

"Nothing" is checked: digest, steps and counts stay, and training goes on as if it had not been.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiered_embed as te
from tiered_embed.optim.adagrad import RowWiseAdagrad
from tiered_embed.optim.adam import Adam
from tiered_embed.optim.descent import SGD

ROWS, DIM = 100, 4
RECORD = 4 * (DIM + 1)

IDS = torch.tensor([5, 7, 5, 99])
OFFSETS = torch.tensor([0, 2])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def make_bag(folder: Path | None, **options: Any) -> te.TieredEmbeddingBag:
    options = {
        "num_embeddings": ROWS,
        "embedding_dim": DIM,
        "tiers": te.Tiers(ddr=10 * RECORD, ssd=folder, store="memory"),
        "optimizer": RowWiseAdagrad(lr=0.1),
        "name": "user",
        "lookahead": 2,
        "depth": 1,
        **options,
    }
    return te.TieredEmbeddingBag(**options)


def make_collection(folder: Path | None, **options: Any) -> te.TieredEmbeddingBagCollection:
    options = {
        "tables": [
            te.TableConfig("user", ROWS, DIM, ["viewer", "author"]),
            te.TableConfig("item", None, 2 * DIM, mode="mean"),
        ],
        "tiers": te.Tiers(ddr=2000, ssd=folder, store="memory"),
        "optimizer": RowWiseAdagrad(lr=0.1),
        **options,
    }
    return te.TieredEmbeddingBagCollection(**options)


def features(**changed: Any) -> dict[str, Any]:
    return {"viewer": (IDS, OFFSETS), "author": (IDS, OFFSETS), "item": (IDS, OFFSETS), **changed}


def without(name: str) -> dict[str, Any]:
    return {k: v for k, v in features().items() if k != name}


def train(module: torch.nn.Module, seed: int) -> None:
    """One good step."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, ROWS, 8))
    offsets = torch.tensor([0, 3, 3])
    if isinstance(module, te.TieredEmbeddingBag):
        module(ids, offsets).sum().backward()
    else:
        given = dict.fromkeys(["viewer", "author", "item"], (ids, offsets))
        torch.cat(list(module(given).values()), dim=1).sum().backward()


def elsewhere(t: torch.Tensor) -> torch.Tensor:
    return t.to("meta")


def floats(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


BAG_INPUTS: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "negative id": (
        (torch.tensor([5, -1]), torch.tensor([0])),
        te.IdRangeError,
        "table 'user': id -1 at position 1 is outside [0, 100); "
        "pass bounds_check='clamp' or raise num_embeddings",
    ),
    "too large id": (
        (torch.tensor([5, 7, 100]), OFFSETS),
        te.IdRangeError,
        "table 'user': id 100 at position 2 is outside [0, 100); "
        "pass bounds_check='clamp' or raise num_embeddings",
    ),
    "too large id in 2-D": (
        (torch.tensor([[5, 7], [2**62, 1]]),),
        te.IdRangeError,
        "id 4611686018427387904 at position 2",
    ),
    "too large int32 id": (
        (torch.tensor([2**31 - 1], dtype=torch.int32), torch.tensor([0])),
        te.IdRangeError,
        "id 2147483647 at position 0",
    ),
    "float ids": (
        (IDS.float(), OFFSETS),
        te.ConfigError,
        "indices has dtype torch.float32; it must be torch.int64 or torch.int32",
    ),
    "bool ids": ((IDS > 5, OFFSETS), te.ConfigError, "torch.bool"),
    "short ids": ((IDS.short(), OFFSETS), te.ConfigError, "torch.int16"),
    "ids in a list": (([5, 7], OFFSETS), te.ConfigError, "indices is a list; pass an int64"),
    "ids on another device": (
        (elsewhere(IDS), OFFSETS),
        te.ConfigError,
        "indices is on meta; move it to the CPU",
    ),
    "3-D ids": ((IDS.reshape(1, 2, 2),), te.ConfigError, "shape (1, 2, 2); pass 1-D or 2-D"),
    "a single id": ((torch.tensor(5), OFFSETS), te.ConfigError, "shape (); pass 1-D or 2-D"),
    "1-D ids without offsets": ((IDS,), te.ConfigError, "1-D indices need offsets"),
    "2-D ids with offsets": (
        (IDS.reshape(2, 2), OFFSETS),
        te.ConfigError,
        "(2, 2) every row is a bag; pass no offsets with 2-D",
    ),
    "offsets that do not start at 0": (
        (IDS, torch.tensor([1, 2])),
        te.ConfigError,
        "table 'user': offsets start at 1; the first must be 0",
    ),
    "offsets that start below 0": (
        (IDS, torch.tensor([-1, 2])),
        te.ConfigError,
        "offsets start at -1; the first must be 0",
    ),
    "falling offsets": (
        (IDS, torch.tensor([0, 3, 2])),
        te.ConfigError,
        "offset 3 at position 1 is behind offset 2 that follows; offsets never fall",
    ),
    "offsets past the end": (
        (IDS, torch.tensor([0, 2, 9])),
        te.ConfigError,
        "offset 9 at position 2 is behind the end, 4 ids, that follows; "
        "offsets never fall and stay within the ids",
    ),
    "no offsets for ids": (
        (IDS, torch.tensor([], dtype=torch.int64)),
        te.ConfigError,
        "4 ids but no offsets: they belong to no bag",
    ),
    "float offsets": ((IDS, OFFSETS.float()), te.ConfigError, "offsets has dtype torch.float32"),
    "2-D offsets": ((IDS, OFFSETS.reshape(1, 2)), te.ConfigError, "offsets have shape (1, 2)"),
    "offsets on another device": ((IDS, elsewhere(OFFSETS)), te.ConfigError, "offsets is on meta"),
    "too few weights": (
        (IDS, OFFSETS, WEIGHTS[:3]),
        te.ConfigError,
        "per_sample_weights have shape (3,) but the indices have shape (4,); pass one weight per",
    ),
    "weights of another shape": (
        (IDS.reshape(2, 2), None, WEIGHTS),
        te.ConfigError,
        "per_sample_weights have shape (4,) but the indices have shape (2, 2)",
    ),
    "double weights": (
        (IDS, OFFSETS, WEIGHTS.double()),
        te.ConfigError,
        "per_sample_weights are torch.float64; pass a torch.float32 tensor",
    ),
    "weights in a list": ((IDS, OFFSETS, [1.0] * 4), te.ConfigError, "per_sample_weights are list"),
    "weights on another device": (
        (IDS, OFFSETS, elsewhere(WEIGHTS)),
        te.ConfigError,
        "per_sample_weights are on meta",
    ),
}

COLLECTION_INPUTS: dict[str, tuple[Any, type[Exception], str]] = {
    "a missing feature": (without("item"), te.ConfigError, "features missing: ['item']"),
    "an unknown feature": (features(hour=(IDS, OFFSETS)), te.ConfigError, "unknown: ['hour']"),
    "no mapping": ([IDS], te.ConfigError, "input is a list; pass a KeyedJaggedTensor or"),
    "different numbers of bags": (
        features(author=(IDS, torch.tensor([0]))),
        te.ConfigError,
        "every feature needs the same number of bags; they have "
        "{'viewer': 2, 'author': 1, 'item': 2}",
    ),
    "a bad id behind good features": (
        features(author=(torch.tensor([1, 100]), OFFSETS)),
        te.IdRangeError,
        "table 'user': id 100 at position 1 is outside [0, 100)",
    ),
    "weights for a mean": (
        features(item=(IDS, OFFSETS, WEIGHTS)),
        te.ConfigError,
        "table 'item': per_sample_weights need mode='sum', not 'mean'",
    ),
    "float ids of one feature": (
        features(author=(IDS.float(), OFFSETS)),
        te.ConfigError,
        "feature 'author': indices has dtype torch.float32",
    ),
    "offsets past the end of one feature": (
        features(viewer=(IDS, torch.tensor([0, 5]))),
        te.ConfigError,
        "feature 'viewer': offset 5 at position 1",
    ),
}

ROW_CALLS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "rows past the end": (lambda m: m.rows([3, 100]), te.IdRangeError, "id 100 at position 1"),
    "state of a negative id": (
        lambda m: m.optimizer_state([-3]),
        te.IdRangeError,
        "id -3 at position 0",
    ),
    "rows of floats": (lambda m: m.rows(torch.tensor([1.0])), te.ConfigError, "float32"),
    "rows of 2-D ids": (lambda m: m.rows([[1, 2]]), te.ConfigError, "(1, 2)"),
    "rows of ids on another device": (lambda m: m.rows(elsewhere(IDS)), te.ConfigError, "meta"),
    "rows of another table": (
        lambda m: m.rows([1], "item"),
        te.ConfigError,
        "there is no table 'item'; the tables are ['user']",
    ),
    "load past the end": (
        lambda m: m.load_rows([3, 100], floats(2, DIM)),
        te.IdRangeError,
        "id 100 at position 1",
    ),
    "load repeated ids": (
        lambda m: m.load_rows([3, 4, 3], floats(3, DIM)),
        te.ConfigError,
        "1 of 3 ids repeat an earlier one",
    ),
    "load too few rows": (
        lambda m: m.load_rows([3, 4], floats(1, DIM)),
        te.ConfigError,
        "(1, 4); pass shape (2, 4)",
    ),
    "load another width": (
        lambda m: m.load_rows([3], floats(1, DIM + 1)),
        te.ConfigError,
        "(1, 5); pass shape (1, 4)",
    ),
    "load doubles": (
        lambda m: m.load_rows([3], floats(1, DIM).double()),
        te.ConfigError,
        "weights are torch.float64; pass a torch.float32 tensor",
    ),
    "load weights from another device": (
        lambda m: m.load_rows([3], elsewhere(floats(1, DIM))),
        te.ConfigError,
        "meta",
    ),
    "load arrays": (
        lambda m: m.load_rows([3], np.zeros((1, DIM), np.float32)),
        te.ConfigError,
        "weights are ndarray",
    ),
    "load an unknown state": (
        lambda m: m.load_rows([3], floats(1, DIM), {"momentum": floats(1, 1)}),
        te.ConfigError,
        "state has the arrays ['momentum']; the optimizer keeps ['sum']",
    ),
    "load a state of another width": (
        lambda m: m.load_rows([3], floats(1, DIM), {"sum": floats(1, DIM)}),
        te.ConfigError,
        "state 'sum' is float32 (1, 4); pass float32 (1, 1)",
    ),
    "import into a trained module": (
        lambda m: m.import_rows([([3], floats(1, DIM))]),
        te.ConfigError,
        "use load_rows",
    ),
}


def what_is(module: Any) -> tuple[Any, ...]:
    digest = module.digest()
    stats = module.stats()
    counts = [vars(stats.tiers["DDR"]), *(vars(c) for c in stats.tables.values())]
    ignored = ("stall_s", "overhead_bytes")
    return digest, stats.steps, [{k: v for k, v in c.items() if k not in ignored} for c in counts]


def check_refused(
    module: Any, call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    """``call`` raises, with ``message`` in it; the module is as it was."""
    before = what_is(module)
    with pytest.raises(error, match=re.escape(message)):
        call()
    assert what_is(module) == before


def run_loop(module: Any, batches: list[Any]) -> None:
    loop = te.prefetch(batches, module, ids=lambda b: {module: b})
    for batch in loop:
        out = module(*batch) if isinstance(batch, tuple) else module(batch)
        values = list(out.values()) if isinstance(out, dict) else [out]
        sum(v.sum() for v in values).backward()


@pytest.fixture(scope="module", params=["tiers", "memory alone"])
def bag(request, tmp_path_factory):
    """Trained for a while, many rows evicted where there is a tier below; and an equal twin."""
    folder = tmp_path_factory.mktemp("bag") if request.param == "tiers" else None
    twin_folder = tmp_path_factory.mktemp("twin") if folder else None
    ddr = (10 if folder else ROWS) * RECORD
    pair = [
        make_bag(f, tiers=te.Tiers(ddr=ddr, ssd=f, store="memory")) for f in (folder, twin_folder)
    ]
    for module in pair:
        for seed in range(12):
            train(module, seed)
    yield pair[0]
    # Whatever was refused meanwhile: both train on alike.
    for module in pair:
        for seed in range(12, 20):
            train(module, seed)
    assert pair[0].digest() == pair[1].digest()
    for module in pair:
        module.close()


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    pair = [make_collection(tmp_path_factory.mktemp(name)) for name in ("one", "twin")]
    for module in pair:
        for seed in range(8):
            train(module, seed)
    yield pair[0]
    for module in pair:
        train(module, 8)
    assert pair[0].digest() == pair[1].digest()
    for module in pair:
        module.close()


@pytest.mark.parametrize("name", BAG_INPUTS)
def test_a_bag_refuses(name, bag):
    args, error, message = BAG_INPUTS[name]
    check_refused(bag, lambda: bag(*args), error, message)
    bag.eval()
    check_refused(bag, lambda: bag(*args), error, message)
    bag.train()
    check_refused(bag, lambda: run_loop(bag, [args]), error, message)


@pytest.mark.parametrize("name", COLLECTION_INPUTS)
def test_a_collection_refuses(name, collection):
    value, error, message = COLLECTION_INPUTS[name]
    check_refused(collection, lambda: collection(value), error, message)
    collection.eval()
    check_refused(collection, lambda: collection(value), error, message)
    collection.train()
    check_refused(collection, lambda: run_loop(collection, [value]), error, message)


@pytest.mark.parametrize("name", ROW_CALLS)
def test_row_access_refuses(name, bag):
    call, error, message = ROW_CALLS[name]
    if name == "import into a trained module" and bag.stats().tiers.get("SSD") is None:
        message = "te.Tiers(ssd=...)"
    check_refused(bag, lambda: call(bag), error, message)


def test_rows_of_several_tables_need_a_name(collection):
    check_refused(
        collection, lambda: collection.rows([1]), te.ConfigError, "['user', 'item']; pass table="
    )


def test_weights_for_a_mean_bag(tmp_path):
    with make_bag(tmp_path, mode="mean") as module:
        train(module, 0)
        message = "table 'user': per_sample_weights need mode='sum', not 'mean'"
        check_refused(module, lambda: module(IDS, OFFSETS, WEIGHTS), te.ConfigError, message)


def test_a_last_offset_that_is_not_the_end(tmp_path):
    with make_bag(tmp_path, include_last_offset=True) as module:
        train_args = (IDS, torch.tensor([0, 2, 4]))
        module(*train_args).sum().backward()
        for offsets, last in (
            ([0, 2, 3], "it is 3"),
            ([], "there are no offsets"),
            ([0, 5], "it is 5"),
        ):
            message = f"the last offset must be the number of ids, 4, but {last}"
            given = torch.tensor(offsets, dtype=torch.int64)
            check_refused(module, lambda g=given: module(IDS, g), te.ConfigError, message)


def test_clamp_is_the_remedy_that_it_says(tmp_path):
    with make_bag(tmp_path / "a", bounds_check="clamp") as clamped, make_bag(tmp_path / "b") as bag:
        clamped(torch.tensor([-(2**63), 50, 2**63 - 1]), OFFSETS).sum().backward()
        bag(torch.tensor([0, 50, 99]), OFFSETS).sum().backward()
        assert clamped.digest() == bag.digest()


# --- configuration --------------------------------------------------------------------------------

CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no columns": ({"embedding_dim": 0}, "table 'user': embedding_dim is 0; it must be a positive"),
    "negative columns": ({"embedding_dim": -4}, "embedding_dim is -4; it must be a positive"),
    "half a column": ({"embedding_dim": 1.5}, "embedding_dim is 1.5"),
    "no rows": ({"num_embeddings": 0}, "table 'user': num_embeddings is 0; it must be a positive"),
    "negative rows": ({"num_embeddings": -1}, "num_embeddings is -1"),
    "no name": ({"name": ""}, "a table's name is ''"),
    "an unknown mode": ({"mode": "median"}, "table 'user': mode is 'median'; choose 'sum'"),
    "double precision": ({"dtype": torch.float64}, "dtype is torch.float64; rows are"),
    "an optimizer for int8": ({"dtype": torch.int8}, "int8 rows are read-only: pass optimizer="),
    "an integer output": ({"output_dtype": torch.int32}, "output_dtype is torch.int32; it must"),
    "an unknown rounding": ({"rounding": "up"}, "rounding is 'up'; choose one of nearest"),
    "an unknown on_nonfinite": ({"on_nonfinite": "cry"}, "on_nonfinite is 'cry'; choose one"),
    "a negative max_norm": (
        {"max_norm": -1.0},
        "max_norm is -1.0; it must be a number of at least",
    ),
    "a norm of type NaN": ({"norm_type": float("nan")}, "norm_type is nan; it must be a number"),
    "an unknown policy": ({"policy": "fifo"}, "policy is 'fifo'; choose one of lru, lfu, s3fifo"),
    "a negative seed": ({"seed": -1}, "seed is -1"),
    "a seed beyond 64 bits": ({"seed": 2**64}, "seed is 18446744073709551616"),
    "deeper than the window": ({"lookahead": 1, "depth": 2}, "depth is 2 but lookahead is 1"),
    "a negative depth": ({"depth": -1}, "depth is -1"),
    "no threads": ({"num_threads": 0}, "num_threads is 0; it must be a positive integer"),
    "an unknown bounds check": ({"bounds_check": "wrap"}, "'wrap'; choose one of raise, clamp"),
    "no optimizer": ({"optimizer": "sgd"}, "optimizer is 'sgd'; pass one of te.optim"),
    "no tiers": ({"tiers": None}, "tiers is None; pass te.Tiers"),
    "no init": ({"init": 0.1}, "init is 0.1; pass te.init.Uniform or te.init.Constant"),
}


def tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*"))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_is_refused_before_anything_is_made(name, tmp_path):
    options, message = CONFIGURATIONS[name]
    with pytest.raises(te.ConfigError, match=re.escape(message)):
        make_bag(tmp_path / "store", **options)
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ddr": 0}, "ddr is 0; it must be positive"),
        ({"ddr": -5}, "ddr is -5; it must be positive"),
        ({"ddr": "12 parsecs"}, "ddr is '12 parsecs'; pass bytes, or a string such as '512MiB'"),
        ({"ddr": 1.5}, "ddr is 1.5"),
        ({"ddr": 100, "store": "leveldb"}, "store is 'leveldb'; choose 'auto', 'rocksdb'"),
    ],
)
def test_tiers_refuse(given, message):
    with pytest.raises(te.ConfigError, match=re.escape(message)):
        te.Tiers(**given)


def test_tiers_that_cannot_compute(tmp_path):
    with pytest.raises(te.ConfigError, match=r"pass te.Tiers\(ddr="):
        make_bag(None, tiers=te.Tiers(ssd=tmp_path))
    with pytest.raises(te.ConfigError, match=r"needs a GPU.*pass device='cpu'"):
        make_bag(None, tiers=te.Tiers(hbm=1000, ddr=1000))
    for options, message in (
        ({"device": "cuda"}, r"no HBM: pass te.Tiers\(hbm="),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"kernel": "fast"}, "kernel is 'fast'; choose one of auto, native"),
        ({"kernel": "fbgemm"}, r"computes in the HBM tier: pass te.Tiers\(hbm="),
    ):
        with pytest.raises(te.ConfigError, match=message):
            make_bag(None, tiers=te.Tiers(ddr=1000), **options)


def test_a_budget_too_small_for_one_record(tmp_path):
    make_bag(None, tiers=te.Tiers(ddr=RECORD), num_embeddings=None).close()
    message = "DDR has 19 bytes for table 'user', less than one record of 20; raise ddr"
    with pytest.raises(te.ConfigError, match=message):
        make_bag(None, tiers=te.Tiers(ddr=RECORD - 1, ssd=tmp_path / "store"))
    # One pool of two: half of the budget is less than a record of the other.
    with pytest.raises(te.ConfigError, match="less than one record of 36; raise ddr"):
        make_collection(None, tiers=te.Tiers(ddr=60, ssd=tmp_path / "store"))
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: SGD(lr=-0.1), "SGD: lr is -0.1; it must be finite and at least 0.0"),
        (lambda: SGD(lr=float("nan")), "SGD: lr is nan"),
        (lambda: RowWiseAdagrad(lr=0.1, eps=-1), "RowWiseAdagrad: eps is -1"),
        (lambda: Adam(lr=0.1, beta1=1.0), "Adam: beta1 is 1.0; it must be in [0.0, 1.0)"),
        (lambda: te.init.Uniform(1, 0), "Uniform(1, 0): pass finite bounds with lo <= hi"),
    ],
)
def test_specs_refuse(optimizer, message):
    with pytest.raises(te.ConfigError, match=re.escape(message)):
        optimizer()


def test_two_tables_of_one_name_in_a_collection(tmp_path):
    same = [te.TableConfig("user", ROWS, DIM), te.TableConfig("user", ROWS, 8, ["other"])]
    with pytest.raises(te.ConfigError, match="table 'user' is configured twice"):
        make_collection(tmp_path / "store", tables=same)
    with pytest.raises(te.ConfigError, match="at least one table"):
        make_collection(tmp_path / "store", tables=[])
    assert tree(tmp_path) == []


def test_two_names_that_share_their_key_are_refused(tmp_path):
    """The first pair of this form whose SHA-256 agree in 4 bytes."""
    tables = [te.TableConfig("table-34109", ROWS, DIM), te.TableConfig("table-54991", ROWS, 8)]
    with pytest.raises(te.ConfigError, match=r"'table-34109'.*'table-54991'"):
        make_collection(tmp_path / "store", tables=tables)


# --- the store's directory ------------------------------------------------------------------------


@pytest.fixture(params=["rocksdb", "rocksdb_py", "memory"])
def store(request, stores):
    if request.param not in stores:
        pytest.skip("built without RocksDB")
    return request.param


def test_a_directory_that_cannot_be_written(store, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    tiers = te.Tiers(ddr=1000, ssd=file / "below", store=store)
    with pytest.raises(te.StoreError, match=re.escape(str(file / "below"))):
        make_bag(None, tiers=tiers)
    with pytest.raises(te.StoreError, match=re.escape(str(file))):
        make_bag(None, tiers=te.Tiers(ddr=1000, ssd=file, store=store))
    assert file.read_text() == "in the way"


def test_a_directory_that_is_open_already(store, tmp_path):
    tiers = te.Tiers(ddr=1000, ssd=tmp_path, store=store)
    with make_bag(None, tiers=tiers) as module:
        train(module, 0)
        # Two modules with one table name are two tables of one name.
        for options in ({}, {"embedding_dim": 8}):
            check_refused(
                module,
                lambda options=options: make_bag(None, tiers=tiers, **options),
                te.StoreError,
                str(tmp_path),
            )
        train(module, 1)
        digest = module.digest()
    with make_bag(None, tiers=tiers) as again:
        assert again.digest() == digest


def test_a_directory_that_another_process_has_open(tmp_path):
    script = (
        "import sys, tiered_embed as te\n"
        "tiers = te.Tiers(ddr=1000, ssd=sys.argv[1], store='memory')\n"
        "module = te.TieredEmbeddingBag(100, 4, tiers=tiers, name='user',\n"
        "    optimizer=te.optim.RowWiseAdagrad(lr=0.1))\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
        "module.close()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(te.__file__).parents[1],
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(te.StoreError, match=re.escape(str(tmp_path))):
            make_bag(tmp_path)
        other.communicate()
    assert other.returncode == 0
    make_bag(tmp_path).close()


OTHER_LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "another dim": ({"embedding_dim": 8}, "dim: stored 4, wanted 8"),
    "another optimizer": ({"optimizer": Adam(lr=0.1)}, "optimizer: stored 'RowWiseAdagrad'"),
    "another optimizer of one size": ({"optimizer": SGD(lr=0.1)}, "wanted 'SGD'"),
    "another seed": ({"seed": 1}, "seed: stored 0, wanted 1"),
    "another init": ({"init": te.init.Constant(0.5)}, "init: stored"),
}


@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_a_store_of_another_layout(name, store, tmp_path):
    options, message = OTHER_LAYOUTS[name]
    tiers = te.Tiers(ddr=1000, ssd=tmp_path, store=store)
    with make_bag(None, tiers=tiers) as module:
        train(module, 0)
        digest = module.digest()
    with pytest.raises(te.ConfigError, match=re.escape(message)) as raised:
        make_bag(None, tiers=tiers, **options)
    assert "choose another directory" in str(raised.value)
    with make_bag(None, tiers=tiers) as again:
        assert again.digest() == digest


def test_a_store_of_another_backend(tmp_path):
    with make_bag(tmp_path) as module:
        train(module, 0)
        digest = module.digest()
    with pytest.raises(te.ConfigError, match="backend: stored 'memory', wanted 'rocksdb_py'"):
        make_bag(None, tiers=te.Tiers(ddr=1000, ssd=tmp_path, store="rocksdb_py"))
    with make_bag(None, tiers=te.Tiers(ddr=1000, ssd=tmp_path)) as again:
        assert again.digest() == digest


def test_a_store_of_other_tables(tmp_path):
    with make_collection(tmp_path) as module:
        train(module, 0)
        digest = module.digest()
    # All of one dim are one pool: 'user' would be stored together with 'item'.
    tables = [te.TableConfig("user", ROWS, DIM), te.TableConfig("item", None, DIM)]
    with pytest.raises(te.ConfigError, match=r"table '(user|item)' is stored in .*another ssd"):
        make_collection(tmp_path, tables=tables)
    with make_collection(tmp_path) as again:
        assert again.digest() == digest


# --- capacity -------------------------------------------------------------------------------------


def test_more_rows_than_memory_without_a_store():
    tiers = te.Tiers(ddr=8 * RECORD)
    with make_bag(None, tiers=tiers, num_embeddings=None) as module, make_bag(None) as _:
        module(torch.arange(5).reshape(1, 5)).sum().backward()
        message = "DDR has 8 slots for table 'user' and 2 rows of this batch found none; raise ddr"
        too_many = torch.arange(3, 10).reshape(1, 7)
        for _again in range(2):
            digest = module.digest()
            with pytest.raises(te.CapacityError, match=message) as raised:
                module(too_many)
            assert "ssd" in str(raised.value)
            assert module.digest() == digest
            assert module.stats().steps == 1
        # A smaller batch still fits, and clean rows make room for others.
        with pytest.raises(te.CapacityError):
            module(torch.arange(100, 104).reshape(1, 4))
        for first in range(100, 120, 3):
            module(torch.arange(first, first + 3).reshape(1, 3))
        module(torch.arange(5, 8).reshape(1, 3)).sum().backward()
        with make_bag(None, tiers=te.Tiers(ddr="1MB"), num_embeddings=None) as roomy:
            roomy(torch.arange(5).reshape(1, 5)).sum().backward()
            roomy(torch.arange(5, 8).reshape(1, 3)).sum().backward()
            assert roomy.digest() == module.digest()
        # Evaluation needs no room.
        module.eval()
        assert module(torch.arange(1000).reshape(1, 1000)).shape == (1, DIM)


def test_more_loaded_rows_than_memory_without_a_store():
    with make_bag(None, tiers=te.Tiers(ddr=8 * RECORD), num_embeddings=None) as module:
        module(torch.arange(3).reshape(1, 3)).sum().backward()
        digest = module.digest()
        with pytest.raises(te.CapacityError, match="raise ddr or add an ssd tier"):
            module.load_rows(np.arange(100, 112), floats(12, DIM))
        assert module.digest() == digest
        module.load_rows(np.arange(100, 105), floats(5, DIM))


def test_a_prefetched_batch_without_room_arrives_at_its_place():
    tiers = te.Tiers(ddr=8 * RECORD)
    batches = [torch.arange(4).reshape(1, 4)] * 3 + [torch.arange(4, 12).reshape(1, 8)]
    trained = 0
    with make_bag(None, tiers=tiers, num_embeddings=None) as module:

        def loop() -> None:
            nonlocal trained
            for ids in te.prefetch(batches * 2, module, ids=lambda ids: {module: ids}):
                module(ids).sum().backward()
                trained += 1

        with pytest.raises(te.CapacityError, match="raise ddr or add an ssd tier"):
            loop()
        assert trained == 3
        digest = module.digest()
        with make_bag(None, num_embeddings=None) as dense:
            for ids in batches[:3]:
                dense(ids).sum().backward()
            assert dense.digest() == digest
        module(batches[0]).sum().backward()
        assert module.digest() != digest


def test_unsigned_ids_beyond_int64_are_refused() -> None:
    emb = te.TieredEmbeddingBag(
        None, 4, tiers=te.Tiers(ddr="1MiB"), optimizer=te.optim.SGD(lr=0.1), name="unsigned"
    )
    with emb, pytest.raises(te.ConfigError, match="9223372036854775808, which is beyond int64"):
        emb.rows(np.array([1, 2**63], np.uint64))

"""Mutated manifests: refused with a typed error, and nothing outside the checkpoint is touched.

Half of the mutants are bytes gone wrong; half are JSON that a liar wrote, with the manifest's
checksum of itself computed anew: other types, huge and negative numbers, paths that lead elsewhere,
repeated keys, deep nesting. ``verify`` compares the files with the manifest, so that it must find
every damage of bytes and every lie about files; a lie about the model must be refused by ``load``,
or the right rows come back (which module had them, how many steps there were: nobody else knows).
"""

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiered_embed as te
from checkpoint_files import Checkpoint, make_checkpoint
from report import Report
from small_run import Model

LOAD_ONE_IN = 40
CHECK_SENTINEL_ONE_IN = 50

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63),
    10**30,
    0.5,
    1e308,
    "",
    "x",
    "\0",
    "a" * 5000,
    "💥",
    "../../sentinel/keep",
    "../sentinel",
    "/etc/passwd",
    "store/../../../sentinel/keep",
    ".",
    "..",
    "store",
    "manifest.json",
    "store//CURRENT",
    "store/./CURRENT",
    "C:\\x",
    "0" * 64,
    [],
    {},
    [[]],
    [0] * 200,
    {"": 0},
]


def snapshot(root: Path) -> list[tuple[str, int, int, str]]:
    """Names, sizes, times and contents below ``root``."""
    out = []
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        out.append((str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns, digest))
    return out


def make_sentinel(root: Path, victim: Path) -> None:
    """Files that a manifest may point at, one of them like a file of the checkpoint."""
    root.mkdir()
    (root / "keep").write_bytes(b"do not touch")
    (root / "store").mkdir()
    shutil.copyfile(victim, root / "store" / victim.name)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    out: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(items):
        out.append((value, key))
        if isinstance(part, (dict, list)):
            out += places(part)
    return out


def _other_value(draw: random.Random, old: Any) -> Any:
    near: list[Any] = []
    if isinstance(old, int) and not isinstance(old, bool):
        near = [old + 1, old - 1, -old, old * 2, str(old), float(old), [old]]
    elif isinstance(old, str):
        cut = draw.randrange(len(old) + 1)
        near = [old[:cut], old + "0", old.upper(), old[::-1], "../" + old, "/" + old, [old]]
    elif isinstance(old, (list, dict)) and old:
        near = [list(old), len(old)]
    return copy.deepcopy(draw.choice(near if near and draw.random() < 0.5 else VALUES))


def lie(draw: random.Random, manifest: Any) -> Any:
    """One or two changes to the parsed manifest."""
    out = copy.deepcopy(manifest)
    for _ in range(draw.choice([1, 1, 1, 2])):
        spots = places(out)
        if not spots:
            break
        container, key = draw.choice(spots)
        what = draw.random()
        if what < 0.6:
            container[key] = _other_value(draw, container[key])
        elif what < 0.75:
            del container[key]
        elif isinstance(container, dict) and what < 0.9:
            container[str(_other_value(draw, str(key)))] = container.pop(key)  # another name
        elif isinstance(container, dict):
            container[draw.choice(["extra", "../x", "", "path"])] = draw.choice(VALUES)
        else:
            container.insert(draw.randrange(len(container) + 1), container[key])
    return out


def resealed(manifest: Any) -> str:
    """As text, with the checksum that it carries of itself, if it does, made right."""
    if isinstance(manifest, dict) and set(manifest) == {"content", "sha256"}:
        canonical = json.dumps(manifest["content"], sort_keys=True, separators=(",", ":"))
        manifest = {**manifest, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}
    return json.dumps(manifest, indent=1) + "\n"


def damage(draw: random.Random, text: bytes) -> bytes:
    """Bytes gone wrong."""
    what, at = draw.randrange(8), draw.randrange(len(text))
    if what == 0:
        return text[:at]
    if what == 1:
        return text[:at] + text[at + draw.randrange(1, 40) :]
    if what == 2:
        return text[:at] + draw.randbytes(draw.randrange(1, 9)) + text[at:]
    if what == 3:
        return text[:at] + bytes([text[at] ^ (1 << draw.randrange(8))]) + text[at + 1 :]
    if what == 4:
        part = text[at : at + draw.randrange(1, 200)]
        return text[:at] + part + text[at:]
    if what == 5:
        return text + draw.choice([b"{}", b"\0", text])
    if what == 6:
        return draw.choice([b"", b"{}", b"[]", b"null", b"[" * 100_000, b'{"a":' * 5000, b"1e999"])
    return b"\xff\xfe" + text.decode().encode("utf-16-le")


def same(one: bytes, other: bytes) -> bool:
    """Whether two texts are one manifest: then it may be accepted."""
    try:
        return bool(json.loads(one) == json.loads(other)) and one.count(b":") == other.count(b":")
    except (ValueError, RecursionError):
        return False


class Judge:
    """Whether a mutant is refused as it should be."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self._checkpoint = checkpoint
        self._folder = folder
        self.model = Model(folder)
        te.checkpoint.load(self.model, checkpoint.path)
        self._digest = self.model.emb.digest()

    def verdict(self, *, liar: bool, load: bool) -> tuple[bool, str]:
        """(it was refused, what is wrong or nothing)."""
        if not load:
            refused, wrong = self._refuses(self._checkpoint.verify)
            if refused or wrong:
                return refused, wrong
            if not liar:
                return False, "verify accepted damage"
        return self._loads(liar)

    def _loads(self, liar: bool) -> tuple[bool, str]:
        path = self._checkpoint.path
        refused, wrong = self._refuses(lambda: te.checkpoint.load(self.model, path))
        if wrong:
            return refused, wrong
        if not liar and not refused:
            return False, "load accepted damage"
        try:
            same = self.model.emb.digest() == self._digest
        except te.TieredEmbedError as error:
            return refused, f"the model was left unusable: {error}"
        return refused, "" if same else "other rows came back"

    @staticmethod
    def _refuses(call: Callable[[], Any]) -> tuple[bool, str]:
        try:
            call()
        except (te.StoreError, te.ConfigError, FileNotFoundError):
            return True, ""
        except BaseException as error:
            return True, f"{type(error).__name__}: {error}"
        return False, ""


def run(count: int, seed: int, folder: Path) -> Report:
    report, draw = Report(), random.Random(seed)
    checkpoint = make_checkpoint(folder)
    file = checkpoint.step / "manifest.json"
    text = file.read_bytes()
    manifest = json.loads(text)
    sentinel = folder / "sentinel"
    victim = next(p for p in checkpoint.files() if p.suffix == ".sst")
    make_sentinel(sentinel, victim)
    outside, inside = snapshot(sentinel), snapshot(checkpoint.step / "store")
    judge = Judge(checkpoint, folder / "reader")
    for number in range(count):
        liar = number % 2 == 1
        mutant = resealed(lie(draw, manifest)).encode() if liar else damage(draw, text)
        if same(mutant, text):
            mutant = b"{}"
        file.write_bytes(mutant)
        refused, wrong = judge.verdict(liar=liar, load=number % LOAD_ONE_IN == 0)
        what = "lies" if liar else "damaged bytes"
        report.count(f"{what} refused" if refused else f"{what} without effect on rows")
        if wrong:
            report.fail(f"case {number}, seed {seed}: {wrong}; {mutant[:300]!r}")
        if number % CHECK_SENTINEL_ONE_IN == 0 and snapshot(sentinel) != outside:
            report.fail(f"case {number}, seed {seed}: files outside of the checkpoint changed")
            break
    if snapshot(sentinel) != outside:
        report.fail(f"seed {seed}: files outside of the checkpoint changed")
    if snapshot(checkpoint.step / "store") != inside:
        report.fail(f"seed {seed}: the checkpoint's store changed")
    file.write_bytes(text)
    checkpoint.verify()
    te.checkpoint.load(judge.model, checkpoint.path)
    judge.model.close()
    return report

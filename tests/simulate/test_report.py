"""``tiered-embed simulate``: what it prints, draws and writes; the page in a real browser."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tiered_embed.cli import app
from tiered_embed.errors import ConfigError
from tiered_embed.simulate.charts import octaves
from tiered_embed.simulate.records import Records
from tiered_embed.simulate.report import html, size_text
from tiered_embed.simulate.study import StudyOptions, study
from tiered_embed.traces.trace import Trace

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    ids = np.random.default_rng(1).zipf(1.2, 20_000) % 3000
    path = tmp_path_factory.mktemp("trace") / "ids.i64le"
    path.write_bytes(ids.astype("<i8").tobytes())
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    draw = np.random.default_rng(2)
    columns = {f"<t{i}>": draw.zipf(1.1 + 0.1 * i, 8000) % (4000 // (i + 1)) for i in range(3)}
    options = StudyOptions(
        sizes=(0.05, 0.2, 700),
        policies=("lru", "lookahead", "belady:batch", "access:sieve", "libcachesim:WTinyLFU"),
    )
    calls: list[tuple[str, int, int]] = []
    found = study(
        Trace.from_columns(columns, batch=50),
        options,
        name="three <tables>",
        progress=lambda *call: calls.append(call),
    )
    assert [done for _, done, _ in calls] == list(range(len(calls)))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html(found), encoding="utf-8")
    return path


def invoke(*args: str) -> str:
    result = CliRunner().invoke(app, ["simulate", *args])
    assert result.exit_code == 0, result.output
    return result.stdout


# --- the command ----------------------------------------------------------------------------------


def test_a_table_a_picture_and_a_page(raw, tmp_path):
    picture, page = tmp_path / "out.png", tmp_path / "out.html"
    text = invoke(str(raw), "--batch", "100", "--plot", str(picture), "--html", str(page))
    for word in ("lookahead", "belady:batch", "SHARDS", "LRU curve", "20,000 lookups", "off by"):
        assert word in text
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_json_has_every_count(raw):
    args = ("--batch", "100", "--sizes", "10%,500,100KiB", "--policies", "lru,access:fifo")
    out = json.loads(invoke(str(raw), *args, "--within", "access", "--json"))
    assert out["sizes"] == sorted([round(0.1 * sum(out["rows"].values())), 393, 500])
    assert out["lookups"] == 20_000
    assert [curve["method"].split()[0] for curve in out["estimates"]] == ["SHARDS", "AET", "Che"]
    assert all(curve["error"]["mean"] < 0.1 for curve in out["estimates"])
    lru, fifo = out["policies"]
    assert lru["policy"] == "lru"
    assert fifo["counts"][0]["misses"] > fifo["counts"][2]["misses"]
    assert lru["tables"][0]["table"]["lookups"] == 20_000


def test_one_run_by_bytes(raw):
    args = ("--ddr", "64KiB", "--policies", "lookahead", "--dim", "4", "--batch", "100")
    out = json.loads(invoke(str(raw), *args, "--json"))
    assert out["steps"] == 200
    assert out["slots"] == 64 * 1024 // 20
    assert out["tiers"]["SSD"]["misses"] == out["tiers"]["DDR"]["cold"]
    text = invoke(str(raw), *args)
    assert "lookahead, 200 batches" in text
    assert "SSD" in text


@pytest.mark.parametrize("within", ["batch", "access"])
def test_what_is_compared_counts_the_same_lookups(raw, within):
    policies = "lru,lookahead,belady:batch,access:sieve,access:fifo,belady"
    args = (str(raw), "--batch", "100", "--policies", policies, "--within", within)
    out = json.loads(invoke(*args, "--sizes", "1e3,2%,50%", "--json"))
    groups: dict[str, dict[str, list[float]]] = {"batch": {}, "access": {}}
    for policy in out["policies"]:
        groups[policy["within"]][policy["policy"]] = policy["hit_rate"]
    assert set(groups["batch"]) == {"lru", "lookahead", "belady:batch"}
    text = invoke(*args, "--sizes", "1e3,2%,50%")
    tables = re.split(r"hit rate per lookup, by cache size, counted ", text)[1:]
    assert len(tables) == 2
    for table in tables:
        group = groups["batch" if table.startswith("by batch") else "access"]
        for name in group:
            assert re.search(rf" {name} ", table), name
        lru = re.search(r"LRU curve\s+[│┃]([^\n]*)", table)
        group["LRU"] = [float(rate) for rate in re.findall(r"[01]\.\d{4}", lru[1])]
        bound = next(rates for name, rates in group.items() if name.startswith("belady"))
        for name, rates in group.items():
            for most, rate in zip(bound, rates, strict=True):
                if most is not None and rate is not None:
                    assert rate <= most + 0.00005, f"{name} is above its bound"
    assert "-: too small for the rows of 3 batches" in text
    for curve, rate in zip(groups["batch"]["LRU"], groups["batch"]["lru"], strict=True):
        assert rate is None or abs(curve - rate) < 0.0001
    assert groups["batch"]["lru"].count(None) < 3


def test_the_slider_says_what_it_interpolates(page):
    numbers = json.loads(re.search(r'json">(.*?)</script>', page.read_text(), re.S)[1])
    assert sum(numbers["simulated"]) == 3
    assert numbers["sizes"] == sorted(set(numbers["sizes"]))
    assert numbers["simulated"][numbers["start"]]
    assert "interpolated" in page.read_text()


def test_the_page_fits_a_telephone(page):
    framed = page.parent / "framed.html"
    framed.write_text(
        f'<iframe id="f" width="400" height="800" style="border:0" src="{page.name}"></iframe>'
        "<p id='w'></p><script>window.onload = function () {"
        "var d = document.getElementById('f').contentDocument.documentElement;"
        "document.getElementById('w').textContent = 'width ' + d.scrollWidth; }</script>"
    )
    seen = render(framed, "--dump-dom", "--allow-file-access-from-files")
    width = re.search(r"width (\d+)", seen)
    assert width is not None
    assert int(width[1]) <= 400


def test_what_it_cannot_do_it_says(raw, tmp_path):
    for args, words in (
        ((str(tmp_path / "none"),), "no file"),
        ((str(raw), "--sizes", "many"), "pass 10%"),
        ((str(raw), "--sizes", "0%"), "pass 10%"),
        ((str(raw), "--sizes", "1.5"), "pass 10%"),
        ((str(raw), "--sizes", "0.1"), "pass 10%"),
        ((str(raw), "--sizes", "100B"), "holds no row: a row takes 260 bytes"),
        ((str(raw), "--plot", str(tmp_path / "no" / "a.png")), "there is no folder"),
        ((str(raw), "--optimizer", "adam"), "RowWiseAdagrad"),
        ((str(raw), "--ddr", "1MiB", "--policies", "belady"), "choose one of lru"),
    ):
        result = CliRunner().invoke(app, ["simulate", *args])
        assert result.exit_code == 2
        assert words in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def test_studies_that_cannot_be_are_refused():
    trace = Trace.from_columns({"a": np.arange(9), "b": np.arange(9)})
    with pytest.raises(ConfigError, match="choose one of lru"):
        study(trace, StudyOptions(policies=("best",)))
    with pytest.raises(ConfigError, match="of one dim and with equal options at a time"):
        study(trace, StudyOptions(records=Records({"a": 1, "b": 2})))
    with pytest.raises(ConfigError, match="no access"):
        study(Trace.from_ids(np.empty(0, np.int64)))
    with pytest.raises(ConfigError, match="pass rows"):
        StudyOptions(sizes=(0,))


def test_sizes_are_told_in_units():
    assert [size_text(n) for n in (0, 1023, 1024, 1536, 1020 << 10, 3 << 30)] == [
        *("0 B", "1023 B", "1 KiB", "1.5 KiB", "1020 KiB", "3 GiB")
    ]


def test_histograms_cover_every_lookup():
    trace = Trace.from_ids(np.random.default_rng(3).zipf(1.3, 5000), batch=1)
    found = study(trace, StudyOptions(sizes=(10,), policies=("lru",), estimates=False))
    labels, shares = octaves(found.curve)
    assert labels[-1] == "first"
    assert sum(shares) == pytest.approx(1.0)


# --- the page -------------------------------------------------------------------------------------


class Text(HTMLParser):
    """What is readable without a script, and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")
        self.addresses += [v or "" for name, v in attrs if name in ("src", "href", "data")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


def test_the_page_needs_nothing_else_and_reads_without_scripts(page):
    source = page.read_text()
    parsed = Text()
    parsed.feed(source)
    assert parsed.addresses == []
    assert "http" not in source.replace("http://www.w3.org", "")
    assert "url(" not in source
    text = " ".join(parsed.words)
    for word in ("three <tables>", "<t0>", "lookahead", "belady:batch", "Reuse distances", "%"):
        assert word in text
    assert source.count("<svg") == 3 + 1 + 3  # policies by batch and by access
    assert "<t0>" not in source


def browser() -> str:
    for name in BROWSERS:
        found = shutil.which(name)
        if found is not None:
            return found
    message = f"none of {', '.join(BROWSERS)} is installed; tools/setup.sh installs chromium"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def render(page: Path, *args: str) -> str:
    done = subprocess.run(
        [
            *(browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={page.parent / 'profile'}", "--window-size=1000,3000", *args),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_a_browser_shows_the_page_and_its_slider(page):
    picture = page.parent / "page.png"
    seen = render(page, f"--screenshot={picture}", "--dump-dom")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert '<div id="picker">' in seen, "the script shows the slider"
    bare = page.parent / "bare.html"
    bare.write_text(re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.S))
    assert '<div id="picker" hidden="">' in render(bare, "--dump-dom"), "without it, none"
    picked = re.search(r'<output id="rows">([\d,]+) rows, [\d.]+ .?i?B', seen)
    assert picked is not None
    assert "<dt>LRU hit rate, by batch</dt>" in seen
    assert "<dt>lookahead, by batch</dt>" in seen  # the slider begins at a simulated size
    # Moved to its end, it tells the best that any size has.
    script = page.read_text().replace(
        "</body>",
        "<script>var s = document.getElementById('size'); s.value = s.max;"
        "s.dispatchEvent(new Event('input'));</script></body>",
    )
    moved = page.parent / "moved.html"
    moved.write_text(script)
    last = render(moved, "--dump-dom")
    assert "100.00 % of the distinct rows" in last
    rates = json.loads(re.search(r'json">(.*?)</script>', script, re.S)[1])  # type: ignore[index]
    assert f"{100 * rates['lru'][-1]:.2f} %" in last

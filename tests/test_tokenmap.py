"""Token maps: on the terminal, and as a page in a real browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcodec import Prompt, Readout, container
from memcodec.codec import Codec
from memcodec.container import StoredSpan
from memcodec.view import report
from memcodec.view.tokenmap import CORRECTION, LM, MEMORY, TokenInfo, token_map
from memcodec_cli import tokenmap

from .conftest import TEXT, Run, store_nothing
from .test_cli import refused

HOSTILE = (
    TEXT + "</script><script>document.title='owned'</script><!-- <img src=x onerror=alert(1)> & &lt; \u2028 \x1b[2J"
)
DATA = HOSTILE.encode() + bytes(range(128, 160)) + TEXT.encode()
SETTINGS: list[dict[str, Any]] = [
    {"site": Readout(0.3, 256), "chunk_tokens": 40},
    {"site": Readout(0), "chunk_tokens": 60, "context": 50},
    {"site": Prompt(steps=3), "chunk_tokens": 20},
]


def made(codec: Codec, settings: dict[str, Any]) -> container.Container:
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        return container.unpack(codec.encode(DATA, **settings))


@pytest.mark.parametrize("settings", SETTINGS, ids=["steered", "context", "prompt"])
def test_tokens_add_up_to_the_text_and_its_bits_to_the_file(tiny: Codec, settings: dict[str, Any]) -> None:
    parsed = made(tiny, settings)
    found = list(token_map(tiny, parsed))
    assert b"".join(item.read() if isinstance(item, StoredSpan) else item.data for item in found) == DATA
    tokens = [item for item in found if isinstance(item, TokenInfo)]
    corrections = sum(len(group.corrections) for group in parsed.groups)
    assert sum(token.bits for token in tokens) / 8 == pytest.approx(corrections, rel=0.02, abs=len(parsed.groups) + 4)
    assert [token.chunk for token in tokens] == [
        n for n, chunk in enumerate(parsed.chunks) for _ in range(chunk.tokens)
    ]
    for token in tokens:
        best, most = token.alternatives[0]
        assert [share for _, share in token.alternatives] == sorted((s for _, s in token.alternatives), reverse=True)
        assert most >= token.probability * 0.9999
        if token.writer != CORRECTION:
            assert best == token.data and most == pytest.approx(token.probability)
    writers = {token.writer for token in tokens}
    assert writers == ({LM, MEMORY, CORRECTION} if settings["site"] == Readout(0.3, 256) else {LM, CORRECTION})


def test_a_memory_that_is_steered_by_writes_more(tiny: Codec) -> None:
    """There are fewer corrections than without it, so tokens that the page attributes to the memory are due to it."""
    shares = {}
    for share in (0.0, 0.5):
        tokens = [t for t in token_map(tiny, made(tiny, {"site": Readout(share, 1024)})) if isinstance(t, TokenInfo)]
        shares[share] = sum(token.writer == CORRECTION for token in tokens) / len(tokens)
    assert shares[0.5] < shares[0.0]


# ---- the terminal


def test_inspect_tokens(run: Run, llama_folder: Path, tiny: Codec) -> None:
    Path("a.memz").write_bytes(container.pack(made(tiny, SETTINGS[0])))
    done = run("inspect", "--tokens", "a.memz", "--model", llama_folder, "--device", "cpu", "--color", "always")
    assert done.exit_code == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert shown.startswith("a.memz: bits per token  0 to 1 ")
    assert "\x1b" not in shown and "\x1b[48;5;202m" in done.stdout  # what the text has is shown as ?
    assert "?[2J[32 bytes stored]" in shown and "<script>" in shown
    plain = run("inspect", "--tokens", "a.memz", "--model", llama_folder, "--device", "cpu").stdout
    assert "\x1b" not in plain
    text = "".join(line.removeprefix("text").removeprefix("  ") for line in plain.splitlines() if line[:4] == "text")
    assert "?[2J[32 bytes stored]" in text and "<script>" in text
    assert "cannot be used with --json" in refused(run("inspect", "--tokens", "--json", "a.memz"), 2)


def test_colours(tiny: Codec) -> None:
    tokens = [
        TokenInfo(b"plain", 0.5, LM, (), 0), TokenInfo(b" two\nlines", 9.0, MEMORY, (), 0),
        TokenInfo("é".encode()[:1], 3.0, CORRECTION, (), 0), TokenInfo("é".encode()[1:], 20.0, CORRECTION, (), 0),
    ]  # fmt: skip
    shown = tokenmap.coloured([*tokens, StoredSpan(1234, 0, b"", 0)])
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == "plain two\nlinesé[1,234 bytes stored]"
    assert "\x1b[38;5;16m\x1b[48;5;209m\x1b[22m\x1b[4m two\x1b[0m\n" in shown
    assert "\x1b[48;5;202m\x1b[1m\x1b[24mé" in shown


def test_marks_below_the_text_tell_what_colours_do() -> None:
    tokens = [
        TokenInfo(b"plain", 0.5, LM, (), 0), TokenInfo(b" two\n\nlines\t", 9.0, MEMORY, (), 0),
        TokenInfo("春e\u0301".encode(), 20.0, CORRECTION, (), 0), TokenInfo(b"x" * 30, 3.0, LM, (), 0),
    ]  # fmt: skip
    assert tokenmap.marked([*tokens, StoredSpan(7, 0, b"", 0)], 36).splitlines() == [
        "text  plain two",
        "bits  000004444",
        "by    .....mmmm",
        "text",
        "text  lines   春e\u0301" + 19 * "x",
        "bits  44444444555" + 19 * "2",
        "by    mmmmmmmmccc" + 19 * ".",
        "text  " + 11 * "x" + "[7 bytes stored]",
        "bits  " + 11 * "2" + 16 * "-",
        "by    " + 11 * "." + 16 * "-",
    ]
    heading = tokenmap.plain_heading("a")
    assert "0 0 to 1, 1 1 to 2" in heading and "5 12 or more" in heading and "m the memory" in heading


@pytest.mark.parametrize(
    ("choice", "environment", "on_terminal", "expected"),
    [
        ("auto", {}, True, True), ("auto", {}, False, False), ("auto", {"TERM": "dumb"}, True, False),
        ("auto", {"NO_COLOR": "1"}, True, False), ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"FORCE_COLOR": "1"}, False, True), ("auto", {"FORCE_COLOR": "0"}, False, False),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False), ("never", {"FORCE_COLOR": "1"}, True, False),
        ("always", {"NO_COLOR": "1", "TERM": "dumb"}, False, True),
    ],
)  # fmt: skip
def test_who_decides_about_colours(
    monkeypatch: pytest.MonkeyPatch, choice: str, environment: dict[str, str], on_terminal: bool, expected: bool
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: on_terminal)
    assert tokenmap.wants_colour(choice) is expected


# ---- pages


def page_of(tiny: Codec, settings: dict[str, Any]) -> str:
    parsed = made(tiny, settings)
    return tokenmap.page("<b>name</b>", parsed, list(token_map(tiny, parsed))).decode()


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("settings", SETTINGS, ids=["steered", "context", "prompt"])
def test_pages_hold_everything_and_nothing_that_runs(tiny: Codec, settings: dict[str, Any]) -> None:
    page = page_of(tiny, settings)
    found = data_of(page)
    shown = "".join(item[0] for item in found["items"] if isinstance(item, list))
    assert shown == HOSTILE + TEXT
    assert [item for item in found["items"] if isinstance(item, str)] == ["[32 bytes stored]"]
    assert sum(found["parts"].values()) == found["file"] and found["original"] == len(DATA)
    assert set(found["rivals"]) == {"gzip -9", "zstd -19"}
    assert bool(found["memories"]) == (settings["site"] != Readout(0))
    assert all(-1 <= entry <= 1 for row in found["memories"] for entry in row)
    assert page.count("</script>") == 2 and "<img" not in page and "<b>name" not in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.split('<script id="data"')[0])


def test_pages_are_cut(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_TOKENS", 10)
    found = data_of(page_of(tiny, SETTINGS[1]))
    assert found["cut"] and len(found["items"]) == 10


def test_html_on_the_command_line(run: Run, llama_folder: Path) -> None:
    Path("a").write_text(TEXT)
    usual = ["--model", llama_folder, "--device", "cpu"]
    assert run("compress", "a", "--report", "a.html", *usual).exit_code == 0
    assert run("inspect", "a.memz", "--html", "b.html", *usual).exit_code == 0
    assert data_of(Path("a.html").read_text()) | {"name": "a.memz"} == data_of(Path("b.html").read_text())
    assert "exists" in refused(run("inspect", "a.memz", "--html", "b.html", *usual))
    assert "single FILE" in refused(run("compress", "x", "y", "--report", "c.html", *usual), 2)
    Path("noise").write_bytes(bytes(np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)))
    assert run("compress", "noise", "--report", "n.html", *usual).exit_code == 0
    assert data_of(Path("n.html").read_text())["items"] == ["[500 bytes stored]"]
    Path("noise.memz").unlink()
    Path("n.html").write_text("of before")
    assert "n.html exists: overwrite it with -f" in refused(run("compress", "noise", "--report", "n.html"))
    assert run("compress", "noise", "--report", "n.html", "-f").exit_code == 0
    assert data_of(Path("n.html").read_text())["items"] == ["[500 bytes stored]"]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--virtual-time-budget=3000"]  # fmt: skip
USER = """<script>{
const result = {};
const spans = document.querySelectorAll("#text span");
spans[3].dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
result.hovered = document.querySelector("#about code").textContent;
spans[3].click();
spans[3].dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true, cancelable: true}));
result.focused = document.activeElement.dataset.n;
const find = document.getElementById("find");
find.value = "SEA SHELLS";
find.dispatchEvent(new Event("input"));
document.getElementById("next").click();
result.count = document.getElementById("count").textContent;
result.found = document.activeElement.textContent;
document.getElementById("theme").click();
result.theme = document.documentElement.dataset.theme;
result.text = document.getElementById("text").textContent;
result.name = document.querySelector("h1").textContent;
result.title = document.title;
result.bars = document.querySelectorAll(".bar").length;
result.wide = document.documentElement.scrollWidth <= window.innerWidth;
const out = document.createElement("pre");
out.id = "result";
out.textContent = JSON.stringify(result);
document.body.append(out);
}</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_page_in_a_browser(tiny: Codec, tmp_path: Path, width: int) -> None:
    page = page_of(tiny, SETTINGS[0])
    (tmp_path / "a.html").write_text(page.replace("</body>", USER + "</body>"))
    command = [
        str(CHROMIUM),
        *FLAGS,
        f"--user-data-dir={tmp_path / 'user'}",
        f"--window-size={width},900",
        "--dump-dom",
    ]
    done = subprocess.run([*command, (tmp_path / "a.html").as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    result = json.loads(html.unescape(found[1]))
    items = [item for item in data_of(page)["items"] if isinstance(item, list)]
    assert json.loads(result["hovered"]) == items[3][0]
    assert result["focused"] == "4"
    assert re.fullmatch(r"\d+ found", result["count"]) and int(result["count"].split()[0]) >= 2
    assert result["found"].lower().strip() in "sea shells"
    assert result["theme"] in ("dark", "light")
    assert result["text"].replace("\u00b7", "") == (HOSTILE + "[32 bytes stored]" + TEXT).replace("\u00b7", "")
    assert result["name"] == "<b>name</b>" and result["title"] == "<b>name</b> - memcodec"
    assert result["bars"] == 4 and result["wide"]

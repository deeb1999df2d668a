"""`ldlm sample --trace`: the frames are what the decoder reads, and the page and the film show them to anybody."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import browser
import numpy as np
import pytest
import torch
from PIL import Image

from ldlm.config import SamplerConfig
from ldlm.hub import load_tokenizer
from ldlm.pages import colours
from ldlm.pages import film as gif
from ldlm.pages import trace as trace_page
from ldlm.pages.colours import DARK, LEVELS, LIGHT
from ldlm.sampling import trace
from ldlm.sampling.frames import Cell, Frame, cells, visible
from ldlm.sampling.generation import text_seeds
from ldlm.sampling.trained_run import TrainedRun

SETTINGS = ("--steps", 8, "--seed", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def traced(trained, succeed, tmp_path_factory):
    """A folder that `ldlm sample --trace` wrote, and its trace.json."""
    out = tmp_path_factory.mktemp("trace") / "trace"
    succeed("sample", "--run", trained, *SETTINGS, "--trace", out, "--trace-text", 2, "--trace-frames", 5)
    return out, json.loads((out / "trace.json").read_text(encoding="utf-8"))


def frame(words, t=0.5, probabilities=None, token=0):
    """A made-up frame, a token per word."""
    cells = [Cell(word, i, i + 1, word.startswith("[")) for i, word in enumerate(words)]
    p = probabilities or list(np.linspace(0, 1, len(words)))
    return Frame(t, 0.1, list(range(token, token + len(words))), p, "".join(words), cells)


def long_frames(count=24, tokens=1024):
    """A film of a text as long as the paper's, in which everything changes all the time."""
    draw = np.random.default_rng(0)
    words = [" the", "ing", " of", "at", " latent", "s", ",", " 1847", "er", " and", "\n"]
    return [
        frame(list(draw.choice(words, tokens)), 1 - i / count, draw.random(tokens).tolist(), token=i)
        for i in range(count)
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Frames


@pytest.mark.parametrize("more", [(), ("--temperature", 1), ("--solver", "heun", "--final", "x0")], ids=str)
def test_the_last_frame_is_the_text_that_sample_writes(trained, succeed, tmp_path, more):
    texts, folder = tmp_path / "samples.jsonl", tmp_path / "trace"
    succeed("sample", "--run", trained, *SETTINGS, *more, "--num-samples", 5, "--output", texts)
    succeed("sample", "--run", trained, *SETTINGS, *more, "--trace-text", 3, "--trace", folder)
    wanted = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()][3]
    found = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    assert found["text"] == found["frames"][-1]["text"] == wanted["text"]
    assert found["frames"][-1]["tokens"] == wanted["tokens"]
    assert found["text_seed"] == wanted["seed"]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_confidence_is_the_softmax_at_the_tokens_that_are_shown(trained, temperature):
    run = TrainedRun(trained, torch.device("cpu"))
    generator, sampler = run.generator(), SamplerConfig(steps=6, temperature=temperature)
    seed = int(text_seeds(3, 1, 2))
    seen = []
    z_0 = generator.latents(sampler, torch.tensor([seed]), lambda t, z: seen.append((t.item(), z.clone())))
    frames = trace.record(generator, run.tokenizer, sampler, seed, frames=99, times=())

    assert [f.t for f in frames] == [t for t, _ in seen] + [sampler.t_min]
    for found, z in zip(frames, [*(z for _, z in seen), z_0], strict=True):
        logits = generator.decoder.logits(z)[0].numpy().astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        assert found.probabilities == pytest.approx(p[np.arange(len(p)), found.tokens], rel=1e-9)
        assert found.confidence == pytest.approx(np.mean(found.probabilities))
        assert (found.tokens == p.argmax(-1)).all() == (temperature == 0)
        alpha, sigma = run.schedule.alpha_sigma(torch.tensor(found.t, dtype=torch.float64))
        assert found.snr == pytest.approx((alpha**2 / sigma**2).item(), rel=1e-9)


def test_what_is_written_is_what_was_recorded(trained, traced):
    _, written = traced
    run = TrainedRun(trained, torch.device("cpu"))
    frames = trace.record(run.generator(), run.tokenizer, SamplerConfig(steps=8), written["text_seed"], 5, ())
    assert len(frames) == len(written["frames"]) == 5
    for a, b in zip(frames, written["frames"], strict=True):
        assert (a.t, a.tokens, a.text) == (b["t"], b["tokens"], b["text"])
        assert b["probabilities"] == pytest.approx(a.probabilities, abs=1e-6)


def test_times_are_chosen_on_the_grid():
    grid = torch.linspace(1, 0.2, 9, dtype=torch.float64)  # steps of 0.1
    assert sorted(trace.evaluations(grid, 5, ())) == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert len(trace.evaluations(grid, 99, ())) == 8
    assert sorted(trace.evaluations(grid, 2, [0.0, 0.52, 0.58, 0.91])) == pytest.approx([0.3, 0.5, 0.6, 0.9])


def test_chosen_times_are_shown(trained, succeed, tmp_path):
    times = ("--sampler", "paper", "--trace-times", 0.9, 0.33, 0.32)
    assert succeed("sample", "--run", trained, *SETTINGS, *times, "--trace", tmp_path / "trace")["frames"] == 3
    frames = json.loads((tmp_path / "trace" / "trace.json").read_text(encoding="utf-8"))["frames"]
    assert [f["t"] for f in frames] == pytest.approx([1 - 0.95 / 8, 1 - 6 * 0.95 / 8, 0.05])


# ----------------------------------------------------------------------------------------------------------------------
# Cells


@pytest.mark.parametrize("arch", ["gpt2", "bert"])
def test_cells_cover_the_tokens_and_join_to_the_text(arch, request):
    tokenizer = load_tokenizer(str(request.getfixturevalue(arch)))
    draw = np.random.default_rng(0)
    for _ in range(20):
        tokens = draw.integers(0, len(tokenizer), 40).tolist()
        found = cells(tokenizer, tokens)
        assert "".join(cell.text for cell in found) == tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        assert [cell.start for cell in found] == [0, *(cell.stop for cell in found[:-1])]
        assert found[-1].stop == len(tokens)


def test_a_character_of_several_tokens_is_one_cell(gpt2):
    tokenizer = load_tokenizer(str(gpt2))
    text = "日本 😀, naïve\n"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = cells(tokenizer, tokens)
    assert "�" not in "".join(cell.text for cell in found)
    (sun,) = (cell for cell in found if "日" in cell.text)
    assert (sun.text, sun.stop - sun.start) == ("日", 3)
    p = np.linspace(0.9, 0.1, len(tokens)).tolist()
    shown = Frame(0.5, 0.1, tokens, p, text, found)
    assert shown.probability(sun) == p[sun.stop - 1]
    # Cut off in the middle, it is a sign of its own, and what follows is whole.
    torn = [*tokens[: sun.stop - 1], *tokenizer(", a", add_special_tokens=False)["input_ids"]]
    assert [cell.text for cell in cells(tokenizer, torn)] == ["�", ",", " a"]


def test_special_tokens_are_told_apart(gpt2):
    tokenizer = load_tokenizer(str(gpt2))
    tokens = [tokenizer.eos_token_id, *tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert [(cell.text, cell.special) for cell in cells(tokenizer, tokens)] == [
        ("<|endoftext|>", True),
        ("a", False),
        ("<|endoftext|>", True),
    ]


def test_what_does_not_show_gets_a_sign():
    assert visible("a\tb\nc\x00\x7f\r é") == "a⇥b↵\nc␀␡␍ é"
    assert visible("\u202eabc\u2066\u2028\x85") == "�abc���"


# ----------------------------------------------------------------------------------------------------------------------
# Colours


@pytest.mark.parametrize("scale", [LIGHT, DARK], ids=["light", "dark"])
def test_the_scale_is_one_of_lightness_and_letters_can_be_read_on_it(scale):
    backgrounds = [scale.background(level) for level in range(LEVELS)]
    steps = np.diff([colours.luminance(colour) for colour in backgrounds])
    assert (steps > 0).all() or (steps < 0).all()
    assert backgrounds[-1] == scale.paper
    assert min(colours.contrast(scale.on(level), scale.background(level)) for level in range(LEVELS)) >= 4.5


def test_levels_and_contrast_have_their_known_values():
    assert [colours.level(p) for p in (0, 0.25, 1)] == [0, (LEVELS - 1) // 2, LEVELS - 1]
    assert colours.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert colours.contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)  # WCAG's #777


# ----------------------------------------------------------------------------------------------------------------------
# The page

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    '&amp;"\n',
    "$end",
    "]]>",
    "w" * 300,
    "[a-very-long-special-token-that-is-wider-than-a-phone-is]",
]


class Reader(HTMLParser):
    """The elements of a page, and the text of its frames."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.frames, self.inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if dict(attributes).get("class") == "text":
            self.inside = True
            self.frames.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "p"

    def handle_data(self, data):
        if self.inside:
            self.frames[-1] += data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page of texts that would like to be markup, or are long."""
    path = tmp_path_factory.mktemp("hostile") / "trace.html"
    frames = [frame(HOSTILE, 1.0), frame(HOSTILE[::-1], 0.5, token=1)]
    path.write_text(trace_page.page(frames, {"run": HOSTILE[0], HOSTILE[1]: "1"}), encoding="utf-8")
    return path


def test_text_is_never_markup(hostile):
    read = Reader(hostile.read_text(encoding="utf-8"))
    assert read.frames == [visible("".join(words)) for words in (HOSTILE, HOSTILE[::-1])]
    assert [tag for tag, _ in read.tags].count("script") == 1
    assert [tag for tag, _ in read.tags].count("img") == 1
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)


def test_the_page_shows_every_frame_with_its_probabilities_and_changes(traced):
    folder, written = traced
    page = (folder / "trace.html").read_text(encoding="utf-8")
    read = Reader(page)
    assert read.frames == [visible(f["text"]) for f in written["frames"]]
    for number, article in enumerate(re.findall(r"<article.*?</article>", page, re.DOTALL)):
        shown = written["frames"][number]
        assert f"<b>t</b> {shown['t']:.3f}" in article
        assert f"<b>confidence</b> {np.mean(shown['probabilities']):.0%}" in article
        if number:
            before = written["frames"][number - 1]["tokens"]
            changed = sum(a != b for a, b in zip(before, shown["tokens"], strict=True))
            assert f"<b>changed</b> {changed} of {len(before)}" in article
        else:
            assert "changed" not in article


def test_changed_tokens_are_marked():
    a, b = frame(["x", "y", "z"]), frame(["x", "Y", "z"])
    b.tokens[1] = 99
    page = trace_page.page([a, b], {})
    assert re.findall(r'<i class="(c\d+[ sn]*)" title="([^"]*)">(.*?)</i>', page)[3:] == [
        ("c0", "0.0%", "x"),
        ("c14 n", "50.0%", "Y"),
        ("c20", "100.0%", "z"),
    ]


def test_the_page_needs_nothing_from_outside(traced):
    page = (traced[0] / "trace.html").read_text(encoding="utf-8")
    frame_of_it = re.sub(r"<article.*?</article>|base64,[^\"]*", "", page, flags=re.DOTALL)  # a text may name addresses
    assert not re.search(r"https?:|//[a-z]|@import|url\(", frame_of_it)
    for tag, attributes in Reader(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "default-src 'none'" in page


# ----------------------------------------------------------------------------------------------------------------------
# The page in a browser

SHOWN = "[...document.querySelectorAll('.frame')].findIndex((frame) => frame.classList.contains('on'))"
VISIBLE = """[...document.querySelectorAll(".frame")].flatMap(
    (frame, number) => getComputedStyle(frame).visibility === "visible" ? [number] : [])"""


def test_the_page_opens_at_the_frame_of_its_address_and_can_be_led(traced):
    answers = browser.evaluate(
        traced[0] / "trace.html",
        f"""(() => {{
            const said = [{VISIBLE}], say = () => said.push({SHOWN});
            const slider = document.querySelector("input"), strip = document.querySelector(".strip");
            slider.value = 1; slider.dispatchEvent(new Event("input")); say();
            document.body.dispatchEvent(new KeyboardEvent("keydown", {{key: "ArrowRight", bubbles: true}})); say();
            const bottom = strip.getBoundingClientRect().bottom;
            strip.dispatchEvent(new MouseEvent("click", {{clientY: bottom - 2}})); say();
            document.querySelector("button").click(); say();
            return [...said, document.querySelector("output").textContent, slider.value];
        }})()""",
        fragment="3",
    )
    assert answers == [[3], 1, 2, 4, 0, "t = 1.000", "0"]


def test_the_page_plays_to_the_end_by_itself(traced):
    state = f"[{SHOWN}, document.documentElement.className]"
    begins, ends = browser.evaluate(
        traced[0] / "trace.html",
        f"new Promise((done) => {{ const begins = {state}; setTimeout(() => done([begins, {state}]), 4000); }})",
        milliseconds=6000,
    )
    assert begins == [0, "js playing"]
    assert ends == [4, "js"]


@pytest.mark.parametrize(("width", "dark", "scale"), [(1200, False, LIGHT), (390, True, DARK)], ids=["desk", "phone"])
def test_hostile_and_long_text_harms_nothing_in_either_theme(hostile, width, dark, scale):
    hacked, own, sizes, low, backgrounds, card = browser.evaluate(
        hostile,
        """[window.hacked ?? "safe", document.documentElement.className.includes("js"),
            [document.documentElement.scrollWidth, document.documentElement.clientWidth],
            Math.min(...[...document.querySelectorAll("button, input")].map((element) => element.offsetHeight)),
            [...document.querySelectorAll("#frame-0 i")].map((cell) => getComputedStyle(cell).backgroundColor),
            getComputedStyle(document.querySelector(".card")).backgroundColor]""",
        width,
        dark=dark,
    )
    assert (hacked, own) == ("safe", True)
    assert sizes == [width, width]
    assert low >= 44  # for thumbs
    levels = [colours.level(p) for p in np.linspace(0, 1, len(HOSTILE))]
    assert backgrounds == ["rgb({}, {}, {})".format(*scale.background(level)) for level in levels]
    assert card == "rgb({}, {}, {})".format(*scale.paper)


def test_without_its_script_the_page_is_a_list_of_frames(traced, tmp_path):
    page = (traced[0] / "trace.html").read_text(encoding="utf-8")
    path = tmp_path / "changed.html"
    path.write_text(page.replace("<script>", "<script>document.title = 'ran';"), encoding="utf-8")
    title, visible, tops, bar = browser.evaluate(
        path,
        f"""[document.title, {VISIBLE},
             [...document.querySelectorAll(".frame")].map((frame) => frame.getBoundingClientRect().top),
             document.querySelector(".bar").offsetHeight]""",
    )
    assert title == "From noise to text"  # the policy knows the script, and this is another one
    assert visible == [0, 1, 2, 3, 4]
    assert (np.diff(tops) > 50).all()
    assert bar == 0


# ----------------------------------------------------------------------------------------------------------------------
# The film


def test_the_film_has_the_frames_and_their_colours(traced):
    folder, written = traced
    with Image.open(folder / "trace.gif") as film:
        assert film.n_frames == 5
        assert film.info["loop"] == 0
        durations = []
        for number, shown in enumerate(written["frames"]):
            film.seek(number)
            durations.append(film.info["duration"])
            found = {colour for _, colour in film.convert("RGB").getcolors(1 << 16)}
            wanted = {LIGHT.background(colours.level(p)) for p in shown["probabilities"]}
            assert wanted <= found
        assert durations == [gif.SHORTEST] * 4 + [gif.REST]


def test_the_film_of_a_long_text_is_small_and_shows_its_beginning(tmp_path):
    gif.write(tmp_path / "long.gif", long_frames(6))
    with Image.open(tmp_path / "long.gif") as film:
        assert film.n_frames == 6
        assert film.size == (gif.WIDTH, gif.TOP + gif.MOST_LINES * gif.LINE + gif.BOTTOM)
    assert (tmp_path / "long.gif").stat().st_size < 1e6 * 6 / 24


def test_pieces_stay_within_the_lines_and_say_everything():
    words = ["a", " b", "w" * 300, "\n", "[special]", " c"] * 4
    shown = frame(words)
    pieces = list(gif._layout(shown, shown.changes(None)))
    assert max(piece.x + piece.width for piece in pieces) <= gif.WIDTH - 2 * gif.MARGIN
    said = "".join(piece.text for piece in pieces).replace(" ", "")
    assert said == "".join(words).replace("\n", "↵").replace(" ", "")
    for a, b in pairwise(pieces):
        assert (b.line, b.x) >= (a.line, a.x + a.width) or b.line > a.line


# ----------------------------------------------------------------------------------------------------------------------
# The command


def test_the_same_command_again_does_nothing_and_another_is_refused(trained, traced, succeed, ldlm, refuse):
    folder, _ = traced
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    command = ("sample", "--run", trained, *SETTINGS, "--trace", folder, "--trace-text", 2)
    # How many texts there would be beside it, and how many at a time, is nothing to it.
    again = ldlm(*command, "--trace-frames", 5, "--num-samples", 7, "--batch-size", 3)
    assert "is complete; nothing to do" in again.stderr
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert "trace_frames: 5 -> 6" in refuse(*command, "--trace-frames", 6)
    assert "temperature: 0.0 -> 1.0" in refuse(*command, "--trace-frames", 5, "--temperature", 1)


def test_an_interrupted_one_is_made_whole(trained, succeed, tmp_path):
    command = ("sample", "--run", trained, *SETTINGS, "--trace", tmp_path / "trace")
    succeed(*command)
    files = {name: (tmp_path / "trace" / name).read_bytes() for name in ("trace.html", "trace.gif", "trace.json")}
    for name in ("manifest.json", "trace.gif", "trace.html"):
        (tmp_path / "trace" / name).unlink()
    succeed(*command)
    assert {name: (tmp_path / "trace" / name).read_bytes() for name in files} == files
    assert (tmp_path / "trace" / "manifest.json").exists()


def test_settings_of_a_trace_are_none_of_the_texts(trained, succeed, ldlm, tmp_path):
    command = ("sample", "--run", trained, *SETTINGS, "--num-samples", 2, "--output", tmp_path / "samples.jsonl")
    succeed(*command)
    assert "is complete; nothing to do" in ldlm(*command, "--trace-frames", 3).stderr


def test_what_can_not_be_traced_is_said(trained, refuse, succeed, tmp_path):
    command = ("sample", "--run", trained, "--trace", tmp_path / "trace")
    assert "give one of them" in refuse(*command, "--output", tmp_path / "samples.jsonl")
    assert "trace_frames must be at least 2, not 1" in refuse(*command, "--trace-frames", 1)
    assert "trace_times must be at most 1, not 1.5" in refuse(*command, "--trace-times", 0.5, 1.5)
    assert "--run is missing" in refuse("sample", "--trace", tmp_path / "trace")
    assert succeed(*command, "--dry-run", "--steps", 8)["denoiser_evaluations"] == 8
    assert not (tmp_path / "trace").exists()
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace" / "mine.txt").write_text("mine")
    assert "not made by ldlm" in refuse(*command)

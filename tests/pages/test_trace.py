"""The page of a trace: it shows every frame to anybody, and nothing in it is markup."""

import re
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from made_frames import frame

from ldlm.pages import colours
from ldlm.pages import trace as trace_page
from ldlm.pages.colours import DARK, LIGHT
from ldlm.sampling.frames import visible

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
        f"""new Promise((done) => setTimeout(() => {{
            const said = [{VISIBLE}], say = () => said.push({SHOWN});
            const slider = document.querySelector("input"), strip = document.querySelector(".strip");
            slider.value = 1; slider.dispatchEvent(new Event("input")); say();
            document.body.dispatchEvent(new KeyboardEvent("keydown", {{key: "ArrowRight", bubbles: true}})); say();
            const bottom = strip.getBoundingClientRect().bottom;
            strip.dispatchEvent(new MouseEvent("click", {{clientY: bottom - 2}})); say();
            document.querySelector("button").click(); say();
            done([...said, document.querySelector("output").textContent, slider.value]);
        }}, 400))""",  # a frame fades for 160 ms
        fragment="3",
        milliseconds=2000,
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

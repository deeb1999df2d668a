"""A trace as one HTML file: no network, no library, readable without JavaScript, on a phone, in light and in dark.

Without scripts the frames stand one below the other. With scripts they lie on top of each other, and a slider, the
arrow keys or a touch of the picture below choose one. `#7` after the address opens frame 7.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from ldlm.pages import colours
from ldlm.pages import page as pages
from ldlm.pages.colours import DARK, LEVELS, LIGHT, Scale
from ldlm.sampling.frames import Frame, visible


def page(frames: Sequence[Frame], about: Mapping[str, Any]) -> str:
    """The page; `about` has what stands below the text, by name."""
    body = BODY.substitute(
        end=time(frames[-1]),
        frames="\n".join(map(_frame, range(len(frames)), [None, *frames[:-1]], frames)),
        last=len(frames) - 1,
        ramp="".join(f'<i class="c{level}"></i>' for level in range(LEVELS)),
        middle=LEVELS // 2,
        positions=f"{len(frames[0].tokens):,}",
        strip_light=_strip(frames, LIGHT),
        strip_dark=_strip(frames, DARK),
        about=pages.definitions(about),
    )
    style = STYLE.substitute(light=_theme(LIGHT), dark=_theme(DARK), height=min(max(7 * len(frames), 110), 260))
    return pages.document("From noise to text", body, style=style, script=SCRIPT)


def time(frame: Frame) -> str:
    """t as the page and the film write it."""
    return f"{frame.t:.3f}"


def ratio(frame: Frame) -> str:
    """The signal-to-noise ratio likewise."""
    return "0" if frame.snr < 5e-4 else f"{frame.snr:,.3f}" if frame.snr < 1 else f"{frame.snr:,.1f}"


def _frame(number: int, before: Frame | None, frame: Frame) -> str:
    changes = frame.changes(before)
    figures = [("t", time(frame)), ("SNR", ratio(frame)), ("confidence", f"{frame.confidence:.0%}")]
    if before is not None:
        figures.append(("changed", f"{sum(changes)} of {len(changes)}"))
    head = "".join(f"<span><b>{name}</b> {value}</span>" for name, value in figures)
    return (
        f'<article class="frame" id="frame-{number}" data-t="{time(frame)}"><h2>{head}</h2>'
        f'<p class="text">{_text(frame, changes)}</p></article>'
    )


def _text(frame: Frame, changes: Sequence[bool]) -> str:
    parts = []
    for cell in frame.cells:
        p = frame.probability(cell)
        marks = " s" * cell.special + " n" * any(changes[cell.start : cell.stop])
        parts.append(f'<i class="c{colours.level(p)}{marks}" title="{p:.1%}">{escape(visible(cell.text))}</i>')
    return "".join(parts)


def _theme(scale: Scale) -> str:
    return "".join(
        f".c{n}{{background:{colours.css(scale.background(n))};color:{colours.css(scale.on(n))}}}"
        for n in range(LEVELS)
    )


def _strip(frames: Sequence[Frame], scale: Scale) -> str:
    """A PNG as a data address: a row of pixels per frame, a pixel per position."""
    from PIL import Image

    image = Image.new("RGB", (len(frames[0].tokens), len(frames)))
    image.putdata([scale.background(colours.level(p)) for frame in frames for p in frame.probabilities])
    stream = io.BytesIO()
    image.quantize(LEVELS).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


STYLE = Template("""
$light
@media (prefers-color-scheme: dark) {
$dark
}
.frame { padding: clamp(1rem, 3.5vw, 1.9rem); }
.frame + .frame { border-top: 1px solid var(--line); }
h2 { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; margin: 0 0 1rem; font-size: .95rem; font-weight: 400;
  font-variant-numeric: tabular-nums; }
h2 b { color: var(--soft); font-weight: 400; margin-right: .25em; }
.text i, .key { font-style: normal; padding: .16em 0 .14em; border-radius: 4px; -webkit-box-decoration-break: clone;
  box-decoration-break: clone; border-bottom: 3px solid transparent; background-clip: padding-box; }
.text .n, .key { border-bottom: 3px solid var(--accent); border-bottom-left-radius: 0; border-bottom-right-radius: 0; }
.bar, .cursor { display: none; }
.legend { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: center; color: var(--soft); font-size: .85rem;
  margin: 0 0 2.2rem; padding: 0 .2rem; }
.legend > span { display: inline-flex; align-items: center; gap: .5rem; white-space: nowrap; }
.ramp { display: inline-flex; border: 1px solid var(--line); border-radius: 5px; overflow: hidden; position: relative; }
.ramp i { width: .5rem; height: 1.35rem; }
.ramp b { position: absolute; inset: 0; background: none; text-align: center;
  font: 600 .75rem/1.35rem system-ui, sans-serif; }
.key { color: var(--ink); }
figure { margin: 0 0 2.2rem; }
.strip { position: relative; border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.strip img { display: block; width: 100%; height: ${height}px; image-rendering: pixelated; }
figcaption { margin-top: .6rem; }
dl { border-top: 1px solid var(--line); padding-top: 1.3rem; }
.js .frames { display: grid; grid-template-columns: minmax(0, 1fr); }
.js .frame { grid-area: 1 / 1; border: 0; visibility: hidden; opacity: 0; transition: opacity .16s, visibility .16s; }
.js .frame.on { visibility: visible; opacity: 1; }
.js .bar { display: flex; align-items: center; gap: .9rem; position: sticky; bottom: 0; background: var(--card);
  border-top: 1px solid var(--line); border-radius: 0 0 14px 14px; padding: .7rem clamp(1rem, 3.5vw, 1.9rem);
  padding-bottom: calc(.7rem + env(safe-area-inset-bottom)); }
button { flex: none; width: 2.9rem; height: 2.9rem; border: 0; border-radius: 50%; background: var(--ink);
  color: var(--card); cursor: pointer; display: grid; place-items: center; padding: 0; }
button::before { content: ""; border-style: solid; border-width: .5rem 0 .5rem .8rem; margin-left: .18rem;
  border-color: transparent transparent transparent currentColor; }
.playing button::before { border-width: 0 .22rem; height: .9rem; width: .8rem; margin: 0; border-color: currentColor; }
input { flex: 1; min-width: 0; height: 2.9rem; margin: 0; accent-color: var(--ink); cursor: pointer; }
output { flex: none; min-width: 4.2rem; text-align: right; color: var(--soft); font-size: .9rem;
  font-variant-numeric: tabular-nums; }
.js .strip { cursor: pointer; }
.js .cursor { display: block; position: absolute; left: 0; right: 0; pointer-events: none;
  outline: 2px solid var(--accent); outline-offset: -1px; transition: top .16s; }
@media (prefers-reduced-motion: reduce) { .js .frame, .js .cursor { transition: none; } }
@media print { .js .frames { display: block; } .js .frame { visibility: visible; opacity: 1; break-inside: avoid; }
  .js .bar, .js .cursor { display: none; } i { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
""")

SCRIPT = """
(() => {
  const root = document.documentElement;
  const frames = [...document.querySelectorAll(".frame")];
  const last = frames.length - 1;
  const [button, slider, output, strip, cursor] =
    ["button", "input", "output", ".strip", ".cursor"].map((name) => document.querySelector(name));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let now = 0, timer = 0;

  const show = (number) => {
    frames[now].classList.remove("on");
    now = Math.min(Math.max(number, 0), last);
    frames[now].classList.add("on");
    slider.value = now;
    slider.setAttribute("aria-valuetext", "t = " + frames[now].dataset.t);
    output.textContent = "t = " + frames[now].dataset.t;
    cursor.style.top = 100 * now / frames.length + "%";
    cursor.style.height = 100 / frames.length + "%";
  };
  const pause = () => {
    clearInterval(timer);
    timer = 0;
    root.classList.remove("playing");
    button.setAttribute("aria-label", "Play");
  };
  const play = () => {
    if (now === last) show(0);
    root.classList.add("playing");
    button.setAttribute("aria-label", "Pause");
    timer = setInterval(() => { show(now + 1); if (now === last) pause(); }, 320);
  };
  const go = (number) => { pause(); show(number); };
  const toggle = () => timer ? pause() : play();
  const fromAddress = () => /^#\\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : null;

  button.addEventListener("click", toggle);
  slider.addEventListener("input", () => go(Number(slider.value)));
  strip.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect();
    go(Math.floor((event.clientY - box.top) / box.height * frames.length));
  });
  addEventListener("hashchange", () => go(fromAddress() ?? now));
  addEventListener("keydown", (event) => {
    if (event.target === slider || event.target === button) return;
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (step) go(now + step);
    if (event.key === " ") { event.preventDefault(); toggle(); }
  });

  root.classList.add("js");
  if (fromAddress() !== null) go(fromAddress());
  else if (still) go(last);
  else { show(0); play(); }
})();
"""

BODY = Template("""\
<header>
<h1>From noise to text</h1>
<p class="lead">A text as it comes out of noise, whole and all at once: what the decoder reads in the denoiser’s
estimate of the latents while the noise time <em>t</em> falls from 1 to $end.</p>
</header>
<section class="card" aria-label="Frames">
<div class="frames">
$frames
</div>
<div class="bar">
<button type="button" aria-label="Play"></button>
<input type="range" min="0" max="$last" value="0" aria-label="Frame">
<output></output>
</div>
</section>
<div class="legend">
<span>probability <span>0 %</span><span class="ramp">$ramp<b class="c$middle">25 %</b></span><span>100 %</span></span>
<span><span><span class="key">changed</span> since the frame before</span></span>
</div>
<figure>
<div class="strip"><picture>
<source srcset="$strip_dark" media="(prefers-color-scheme: dark)">
<img src="$strip_light" alt="Probability of each token, from noise at the top to text at the bottom">
</picture><div class="cursor"></div></div>
<figcaption>All frames at a glance: from noise at the top to text at the bottom, the $positions positions of the text
from left to right.</figcaption>
</figure>
$about
""")

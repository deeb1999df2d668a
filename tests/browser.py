"""A headless browser for the tests of what `ldlm` writes as HTML: Debian's chromium (SPEC 12.14).

    browser.require()                            # skips the test, with the reason, where there is none
    browser.dump_dom(path)                       # the page after its scripts have run, as HTML
    browser.evaluate(path, "document.title")     # what a script says within the page, as a Python value
    browser.screenshot(path, out, 390, 844)      # a PNG of exactly that size
    browser.console(path)                        # what the page has to complain of

A page is opened from disk in a profile of its own, which is thrown away. `fragment` is the part of the address after #.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from patience import patience
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--allow-file-access-from-files",  # so that a frame can be looked into
)
NARROWEST = 500  # a window is never narrower, and a phone is


def find() -> str | None:
    """The browser's path; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def require() -> str:
    """The browser's path; skips the test where there is none."""
    found = find()
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    return found


def dump_dom(path: Path, fragment: str = "", *, milliseconds: int = 500) -> str:
    """The page as HTML after its scripts have had so many milliseconds of the browser's virtual time."""
    return _run(f"--virtual-time-budget={milliseconds}", "--dump-dom", _address(path, fragment))


def evaluate(
    path: Path,
    script: str,
    width: int = 1200,
    height: int = 800,
    fragment: str = "",
    *,
    dark: bool = False,
    milliseconds: int = 500,
) -> Any:
    """The value of the expression `script` once the page is loaded, at that size of the window.

    It is run from outside, in the names of the page's window, so that the page's policy may forbid all scripts but its
    own; `</` must not stand in it. The value goes through JSON; a promise is waited for, as long as `milliseconds` of
    virtual time go.
    """
    look = f"""
    <pre id="result"></pre>
    <script>
      const look = (frame) => {{ with (frame) {{ return ({script}); }} }};
      document.querySelector("iframe").onload = async (event) => {{
        let value;
        try {{ value = {{value: (await look(event.target.contentWindow)) ?? null}}; }}
        catch (error) {{ value = {{error: String(error)}}; }}
        document.getElementById("result").textContent = JSON.stringify(value);
      }};
    </script>"""
    with tempfile.TemporaryDirectory() as folder:
        page = _framed(Path(folder), _address(path, fragment), width, height, look)
        dom = _run(f"--virtual-time-budget={milliseconds}", *_scheme(dark), "--dump-dom", page.as_uri())
    found = re.search(r'<pre id="result">(.+?)</pre>', dom, re.DOTALL)
    assert found, f"the page gave no answer within {milliseconds} ms"
    result = json.loads(html.unescape(found[1]))
    assert "error" not in result, result["error"]
    return result["value"]


def screenshot(
    path: Path, out: Path, width: int, height: int, fragment: str = "", *, dark: bool = False, milliseconds: int = 500
) -> Path:
    """A PNG of the page's top in a window of that size, after so many milliseconds of virtual time."""
    with tempfile.TemporaryDirectory() as folder:
        page = _framed(Path(folder), _address(path, fragment), width, height)
        size = f"--window-size={max(width, NARROWEST)},{height + 200}"  # a window's frame takes some of its height
        _run(f"--virtual-time-budget={milliseconds}", *_scheme(dark), size, f"--screenshot={out}", page.as_uri())
    with Image.open(out) as image:
        cropped = image.crop((0, 0, width, height))
    cropped.save(out)
    return out


def console(path: Path, *, milliseconds: int = 500) -> list[str]:
    """The messages of the page's console: errors, warnings, what its policy has blocked."""
    with tempfile.TemporaryDirectory() as profile:
        log = Path(profile) / "log"
        budget = f"--virtual-time-budget={milliseconds}"
        _run(budget, "--enable-logging", f"--log-file={log}", "--dump-dom", _address(path, ""))
        return [line for line in log.read_text(encoding="utf-8").splitlines() if ":CONSOLE" in line]


def _address(path: Path, fragment: str) -> str:
    return path.resolve().as_uri() + (f"#{fragment}" if fragment else "")


def _scheme(dark: bool) -> tuple[str, ...]:
    return (f"--blink-settings=preferredColorScheme={0 if dark else 1}",)


def _framed(folder: Path, address: str, width: int, height: int, more: str = "") -> Path:
    """A page that shows another one in a frame of exactly that size."""
    page = folder / "frame.html"
    style = f"border: 0; display: block; width: {width}px; height: {height}px"
    page.write_text(
        f'<!doctype html><body style="margin: 0"><iframe src="{html.escape(address)}" style="{style}"></iframe>{more}'
    )
    return page


def _run(*arguments: str) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [require(), *FLAGS, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience())
    assert done.returncode == 0, done.stderr
    return done.stdout

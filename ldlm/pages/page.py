"""What the pages that `ldlm` writes share: their look in light and in dark, and a policy that lets nothing in.

A page is one file: no network, no library, readable without JavaScript, on a phone and on paper.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from string import Template
from typing import Any


def document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """The page: `body` is HTML, `style` comes after the common one, and no script runs but `script`."""
    policy = ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    if script:
        policy.append(f"script-src 'sha256-{_sha256(script)}'")
    return PAGE.substitute(
        policy="; ".join(policy),
        title=escape(title),
        style=STYLE + style,
        body=body,
        script=f"<script>{script}</script>\n" if script else "",
    )


def definitions(values: Mapping[str, Any]) -> str:
    """A list of names and what they are."""
    items = (f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in values.items())
    return "<dl>\n" + "\n".join(items) + "\n</dl>"


def _sha256(script: str) -> str:
    """What the page's policy knows its script by; a script that came in with the text would have another."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


STYLE = """
:root { color-scheme: light dark; --page: #f4f3f0; --card: #ffffff; --ink: #16161d; --soft: #63636f; --line: #dedce3;
  --accent: #1c7ed6; }
@media (prefers-color-scheme: dark) {
:root { --page: #0a0a10; --card: #14141c; --ink: #f2f1f7; --soft: #a09fae; --line: #2c2b38; --accent: #6cc5ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: clamp(1.25rem, 5vw, 3.5rem) clamp(.9rem, 4vw, 2rem) 3rem; }
h1 { font-size: clamp(1.9rem, 6vw, 3rem); line-height: 1.1; letter-spacing: -.025em; margin: 0 0 .8rem; }
.lead { color: var(--soft); max-width: 44rem; margin: 0 0 1.6rem; }
.lead em { font-style: normal; color: var(--ink); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; margin: 0 0 1.4rem; }
.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: clamp(1.02rem, 2.6vw, 1.28rem);
  line-height: 1.85; font-family: "Iowan Old Style", Charter, Palatino, Georgia, "Noto Serif", serif; }
.text .s { font: .66em/1.5 ui-monospace, Menlo, Consolas, monospace; padding: .15em .5em; margin: 0 .15em;
  max-width: calc(100% - .3em); display: inline-block; vertical-align: .1em; border: 1px solid var(--line);
  border-radius: 99px; background-clip: border-box; }
figcaption { color: var(--soft); font-size: .85rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem 1.2rem; margin: 0;
  font-size: .9rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
$script</body>
</html>
""")

"""Pages as HTML, from the templates in `templates/`: everything put into one is escaped, and nothing is loaded.

A page is one file: no network, no library, readable without JavaScript, on a phone and on paper. Its
Content-Security-Policy allows no script but the page's own, identified by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

from ldlm.sampling.frames import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, *, script: str = "", **values: Any) -> str:
    """Fill in a template; `script` is the file name of its script, if it has one."""
    source = _environment().get_template(script).render() if script else ""
    policy = ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    if script:
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        policy.append(f"script-src 'sha256-{digest}'")
    return _environment().get_template(template).render(policy="; ".join(policy), script=source, **values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("ldlm.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["visible"] = visible
    return made

"""Rendering of the report as a single HTML page that loads nothing from elsewhere.

Untrusted values (class names, files, settings) are embedded as JSON escaped for HTML, and the script inserts them only
as text. A content security policy with the hashes of script and style enforces this.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from kernels.host.paths import printable

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def render(content: Mapping[str, Any]) -> str:
    """Render the page; `content` is that of `report.json`, plus the images.

    Non-finite numbers are shown as missing.

    Raises:
        TypeError: a value is not JSON-compatible.
    """
    # Joined to one script: page.js uses the functions of charts.js.
    style, script = _template("page.css"), "\n\n".join(map(_template, ("charts.js", "page.js")))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    slots = {
        "title": html.escape(printable(content["name"])),
        "policy": html.escape(policy),
        "style": style,
        "script": script,
        "data": json_for_html(content),
    }
    # A single pass, so that the content of one slot is never interpreted as another slot.
    return _SLOT.sub(lambda match: slots[match[1]], _template("page.html"))


def json_for_html(content: Any) -> str:
    """Return JSON that is safe inside a <script> element: it can neither end the element nor start a comment."""
    text = json.dumps(finite(content), allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)


def finite(value: Any) -> Any:
    """Replace non-finite numbers by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _template(name: str) -> str:
    return files("graph_train.report").joinpath(name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"

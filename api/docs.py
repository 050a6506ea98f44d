"""The API documentation page: no asset from anywhere else, so that it works where there is no Internet."""

import base64
import hashlib
from pathlib import Path

_SCRIPT = (Path(__file__).with_name("docs.js")).read_text(encoding="utf-8")

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
code, pre, input, textarea { font: 13px/1.45 ui-monospace, monospace }
pre { background: #8882; padding: .6rem; overflow: auto; max-height: 24rem; white-space: pre-wrap }
details { border: 1px solid #8885; border-radius: 6px; margin: .4rem 0; padding: .4rem .7rem }
summary { cursor: pointer } summary b { display: inline-block; width: 4.5rem }
table { border-collapse: collapse; width: 100% } td { padding: .2rem .6rem; vertical-align: top }
input, textarea { width: 100%; box-sizing: border-box; padding: .3rem }
button { margin: .4rem 0; padding: .3rem 1rem }
"""

DOCS_PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Desktop environments: API</title>
<meta name="viewport" content="width=device-width">
<style>{_STYLE}</style></head><body>
<h1>Desktop environments</h1><div id="about"></div>
<p><label>Admin token, kept in this page only:
<input id="token" type="password" autocomplete="off"></label></p>
<main id="operations">Reading <a href="/openapi.json">/openapi.json</a> …</main>
<script>{_SCRIPT}</script></body></html>
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


DOCS_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

"""The files of the status page: read when asked for, so that they cost no memory until then."""

from __future__ import annotations

from pathlib import Path

from aiohttp import hdrs, web

from headroom_exporter import __version__

_FOLDER = Path(__file__).parent / "static"
# All there is: no path of a request ever reaches the file system.
_TYPES = {
    "style.css": "text/css",
    "app.js": "text/javascript",
    "chart.js": "text/javascript",
    "view.js": "text/javascript",
    "format.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "uplot/uPlot.iife.min.js": "text/javascript",
    "uplot/uPlot.min.css": "text/css",
    "uplot/LICENSE": "text/plain",
}


def page() -> str:
    """The status page's HTML with its two places to fill: ``{version}`` and ``{landing}``."""
    return (_FOLDER / "page.html").read_text(encoding="utf-8")


async def asset(request: web.Request) -> web.StreamResponse:
    """One file; 304 where the browser has it already."""
    name = request.match_info["name"]
    if name not in _TYPES:
        raise web.HTTPNotFound(text="no such file\n")
    path = _FOLDER / name
    changed = path.stat().st_mtime_ns
    tag = f'"{__version__}-{changed:x}"'
    headers = {hdrs.ETAG: tag, hdrs.CACHE_CONTROL: "no-cache"}
    if request.headers.get(hdrs.IF_NONE_MATCH) == tag:
        return web.Response(status=304, headers=headers)
    return web.Response(
        body=path.read_bytes(), content_type=_TYPES[name], charset="utf-8", headers=headers
    )

"""GET /api/v1/state and /api/v1/history: what the status page draws, and scripts read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.typedefs import Handler


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusApi:
    """
    Where the answers come from.

    Attributes:
        state: The State as one document.
        history: Rows of (engine, rank, model name) after a Unix time; None where there is no such rank.
    """

    state: Callable[[], dict[str, Any]]
    history: Callable[[str, str, str, float], dict[str, Any] | None]


def add_routes(app: web.Application, api: StatusApi, gzips: Callable[[str], bool]) -> None:
    """
    Add both addresses.

    Args:
        app: Its middlewares say who may ask.
        api: Where the answers come from.
        gzips: Whether an Accept-Encoding takes gzip.
    """
    app.router.add_get("/api/v1/state", _state(api, gzips))
    app.router.add_get("/api/v1/history", _history(api, gzips))


def _state(api: StatusApi, gzips: Callable[[str], bool]) -> Handler:
    async def state(request: web.Request) -> web.StreamResponse:
        return _json(api.state(), request, gzips)

    return state


def _history(api: StatusApi, gzips: Callable[[str], bool]) -> Handler:
    async def history(request: web.Request) -> web.StreamResponse:
        asked = request.query
        names = ("engine", "rank", "model_name")
        absent = [name for name in names if name not in asked]
        if absent:
            raise web.HTTPBadRequest(
                text=f"{absent[0]}: missing; ranks are listed by /api/v1/state\n"
            )
        engine, rank, model_name = (asked[name] for name in names)
        found = api.history(engine, rank, model_name, _since(asked.get("since")))
        if found is None:
            raise web.HTTPNotFound(text="no such rank; ranks are listed by /api/v1/state\n")
        return _json(found, request, gzips)

    return history


def _since(text: str | None) -> float:
    if text is None:
        return -math.inf
    try:
        since = float(text)
    except ValueError:
        since = math.nan
    if not math.isfinite(since):
        raise web.HTTPBadRequest(text=f"since: {text[:40]!r}: must be Unix seconds, as in time\n")
    return since


def _json(
    content: dict[str, Any], request: web.Request, gzips: Callable[[str], bool]
) -> web.StreamResponse:
    # A number that JSON has no word for is a bug: better an error than a page no parser reads.
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    response = web.Response(
        text=text, content_type="application/json", headers={hdrs.CACHE_CONTROL: "no-store"}
    )
    if gzips(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
        response.enable_compression(web.ContentCoding.gzip)
    return response

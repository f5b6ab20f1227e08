"""What visitors find: the status page and its API, /metrics, /healthz, /readyz, POST /-/reload."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from prometheus_client.aiohttp import make_aiohttp_handler

from headroom_exporter import __version__
from headroom_exporter.web import assets, status
from headroom_exporter.web.logins import Logins, gate

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware
    from prometheus_client import CollectorRegistry

    from headroom_exporter.web.settings import WebSettings
    from headroom_exporter.web.status import StatusApi

log = logging.getLogger(__name__)

Reload = Callable[[], Awaitable[str | None]]

# No request here has a body to speak of.
_MAX_BODY_BYTES = 4096

_VERSION = re.compile(r"version=([^;\s]*)")
# Prometheus text 0.0.4 and 1.0.0, OpenMetrics 1.0.0; 0.0.1 falls back to text by itself.
_VERSIONS = frozenset({"0.0.1", "0.0.4", "1.0.0"})
# Only our own files are loaded and run, whatever a model's name tries.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REFUSES = re.compile(r"q=0(?:\.0*)?")


def build_app(
    *,
    registry: CollectorRegistry,
    health: Callable[[], bool],
    ready: Callable[[], bool],
    reload: Reload | None = None,
    landing: Callable[[], str] | None = None,
    api: StatusApi | None = None,
    settings: WebSettings | None = None,
    logins: Logins | None = None,
) -> web.Application:
    """
    The application without its sockets.

    Args:
        registry: What /metrics shows; every collector needs ``describe`` for ``?name[]=``.
        health: Whether the polling loop lives; /healthz is 503 while it does not.
        ready: Whether the first poll is done; /readyz is 503 until then.
        reload: Read the configuration again; returns None, or why it could not be used. None: off.
        landing: Plain text that stands for the status page where no script runs; asked at each request.
        api: What the status page draws. None: there is none, and the page says so.
        settings: The web configuration, where there is one.
        logins: Who checks passwords, where it is to be another than the default.
    """
    middlewares: list[Middleware] = [_errors]
    if settings is not None:
        middlewares.append(gate(settings, logins or Logins()))
    app = web.Application(middlewares=middlewares, client_max_size=_MAX_BODY_BYTES)
    app.on_response_prepare.append(_headers(settings))
    app.router.add_get("/", _page(landing))
    app.router.add_get("/static/{name:.+}", assets.asset)
    if api is not None:
        status.add_routes(app, api, _takes_gzip)
    app.router.add_get("/metrics", _metrics(registry))
    app.router.add_get(
        "/healthz", _probe(health, "ok", "the polling loop is stuck"), name="healthz"
    )
    app.router.add_get("/readyz", _probe(ready, "ready", "no poll is done yet"), name="readyz")
    app.router.add_post("/-/reload", _reload(reload))
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception:
        log.exception("request failed", extra={"path": request.path})
        return web.Response(status=500, text="internal error; the log says more\n")


def _headers(
    settings: WebSettings | None,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def headers(_request: web.Request, response: web.StreamResponse) -> None:
        # The default names the versions of Python and aiohttp.
        response.headers[hdrs.SERVER] = "headroom-exporter"
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        if settings is not None:
            response.headers.update(settings.file.headers)

    return headers


def _metrics(registry: CollectorRegistry) -> Handler:
    render = make_aiohttp_handler(registry, disable_compression=True)

    async def metrics(request: web.Request) -> web.StreamResponse:
        asked = ",".join(request.headers.getall(hdrs.ACCEPT, []))
        headers = request.headers.copy()
        headers[hdrs.ACCEPT] = _speakable(asked)
        request = request.clone(headers=headers)
        response = await render(request)
        # Named, because left to itself aiohttp prefers deflate, and compresses at gzip;q=0.
        if _takes_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
            response.enable_compression(web.ContentCoding.gzip)
        return response

    return metrics


def _speakable(accept: str) -> str:
    """
    What is left of an Accept header without the versions that nobody here speaks.

    prometheus_client 0.26 raises TypeError on ``version=abc`` and says 9.9.9 of itself if asked to.
    """
    entries = accept.split(",")
    return ",".join(
        entry for entry in entries if _VERSIONS.issuperset(_VERSION.findall(entry.lower()))
    )


def _takes_gzip(accept_encoding: str) -> bool:
    for entry in accept_encoding.lower().split(","):
        coding, _, weight = entry.partition(";")
        if coding.strip() == "gzip":
            return _REFUSES.fullmatch(weight.strip()) is None
    return False


def _probe(check: Callable[[], bool], good: str, bad: str) -> Handler:
    async def probe(_request: web.Request) -> web.StreamResponse:
        fine = check()
        return web.Response(status=200 if fine else 503, text=f"{good if fine else bad}\n")

    return probe


def _reload(reload: Reload | None) -> Handler:
    async def reload_now(_request: web.Request) -> web.StreamResponse:
        if reload is None:
            raise web.HTTPForbidden(
                text="reloading over HTTP is switched off: set web.reload to true in the "
                "configuration, or send SIGHUP to the process\n"
            )
        reason = await reload()
        if reason is None:
            return web.Response(text="reloaded\n")
        return web.Response(status=500, text=f"not reloaded, the old one stays: {reason}\n")

    return reload_now


def _page(landing: Callable[[], str] | None) -> Handler:
    async def page(_request: web.Request) -> web.StreamResponse:
        details = f"<pre>{html.escape(landing())}</pre>" if landing is not None else ""
        # Not str.format: what is put in may hold braces, and the page may come to.
        text = assets.page().replace("{version}", html.escape(__version__))
        return web.Response(
            text=text.replace("{landing}", details),
            content_type="text/html",
            headers={
                "Content-Security-Policy": _POLICY,
                "Referrer-Policy": "no-referrer",
                # It may hold every engine's state, and it must be of the version of the scripts.
                hdrs.CACHE_CONTROL: "no-store",
            },
        )

    return page

"""Whoever is woken: a receiver that keeps the notifications that reach it."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """
    One POST.

    Attributes:
        receiver: Last part of the address it was sent to.
        authorization: The header of that name.
        at: Seconds since the webhook was there.
        body: Alertmanager's JSON, version 4.
    """

    receiver: str
    authorization: str | None
    at: float
    body: dict[str, Any]

    def alerts(self, status: str) -> list[dict[str, Any]]:
        """Its alerts that are ``firing`` or ``resolved``."""
        return [alert for alert in self.body["alerts"] if alert["status"] == status]

    def names(self, status: str) -> set[str]:
        """Names of these."""
        return {alert["labels"]["alertname"] for alert in self.alerts(status)}


def as_read(notification: Notification) -> str:
    """What stands on the screen that woke somebody."""
    body = notification.body
    group = ", ".join(f"{key} {value}" for key, value in body["groupLabels"].items())
    lines = [
        f"[{body['status'].upper()}] {notification.receiver}: {group} (at {notification.at:.0f} s)"
    ]
    for alert in body["alerts"]:
        lines += ["", f"  {alert['status']}  {alert['labels']['alertname']}"]
        lines += [f"  {alert['annotations'][key]}" for key in ("summary", "description")]
        lines += [f"  {alert['annotations'][key]}" for key in ("runbook_url", "dashboard")]
        lines += ["  " + " ".join(f"{k}={v}" for k, v in sorted(alert["labels"].items()))]
    return "\n".join(lines) + "\n"


class Webhook:
    """An HTTP server on loopback in a thread of its own; a context manager."""

    def __init__(self) -> None:
        self._kept: list[Notification] = []
        self._changed = threading.Condition()
        self._began = time.monotonic()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook._keep(
                    Notification(
                        receiver=self.path.rpartition("/")[2],
                        authorization=self.headers["Authorization"],
                        at=time.monotonic() - webhook._began,
                        body=json.loads(body),
                    )
                )
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def notifications(self) -> list[Notification]:
        """All so far, in the order in which they came."""
        with self._changed:
            return list(self._kept)

    def wait(self, wanted: Callable[[Notification], bool], seconds: float) -> Notification:
        """
        The first notification that is wanted, when it comes.

        Raises:
            TimeoutError: none within ``seconds``; what came instead is in the text.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                for each in self._kept:
                    if wanted(each):
                        return each
                if not self._changed.wait(end - time.monotonic()):
                    came = "\n".join(as_read(each) for each in self._kept)
                    raise TimeoutError(f"not notified within {seconds} s; what came:\n{came}")

    def _keep(self, notification: Notification) -> None:
        with self._changed:
            self._kept.append(notification)
            self._changed.notify_all()

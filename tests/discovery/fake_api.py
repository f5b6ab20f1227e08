"""
A Kubernetes API server that knows pods and nothing else, over real HTTP on loopback.

Speaks list (limit, continue, resourceVersion) and watch (chunked JSON lines, bookmarks, 410 as a status or
as an event), and can be wrong in the ways that clusters are.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from headroom_exporter.discovery.api import Cluster, Place

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

NODE = "node-a"


def pod(
    name: str,
    *,
    namespace: str = "chat",
    uid: str | None = None,
    ip: str | None = "10.0.0.7",
    phase: str = "Running",
    node: str = NODE,
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    ports: dict[str | None, int] | None = None,
    deleting: bool = False,
) -> dict[str, Any]:
    """A pod as the API server has it, with the ballast that real ones carry."""
    listed = [
        {"containerPort": number, "protocol": "TCP", **({} if label is None else {"name": label})}
        for label, number in (ports or {}).items()
    ]
    metadata: dict[str, Any] = {
        "name": name,
        "generateName": name[:-1],
        "namespace": namespace,
        "uid": uid or f"uid-{name}",
        "creationTimestamp": "2026-11-21T07:00:00Z",
        "labels": {"app": "vllm", **(labels or {})},
        "annotations": {"kubectl.kubernetes.io/restartedAt": "x", **(annotations or {})},
        "ownerReferences": [{"kind": "ReplicaSet", "name": name[:-2] or "x", "uid": "owner"}],
        "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:phase": {}}}}],
    }
    if deleting:
        metadata["deletionTimestamp"] = "2026-11-21T08:00:00Z"
    status: dict[str, Any] = {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "vllm", "ready": True, "state": {"running": {}}}],
    }
    if ip is not None:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "10.9.9.9"}
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai",
        "env": [{"name": "SECRET", "value": "never kept"}],
        "ports": listed,
        "volumeMounts": [{"name": "cache", "mountPath": "/root/.cache"}],
    }
    spec = {"nodeName": node, "containers": [container], "volumes": [{"name": "cache"}]}
    return {"metadata": metadata, "spec": spec, "status": status}


@dataclass
class Asked:
    """One request as it arrived."""

    path: str
    query: dict[str, str]
    token: str

    @property
    def watch(self) -> bool:
        return "watch" in self.query


@dataclass
class FakeApi:
    """
    The server and what it knows.

    Attributes:
        refuse: Status of every answer, instead of an answer.
        refuse_watch: The same, of watches alone.
        hang: Answer nothing while set.
        token: The bearer token it wants; None: any.
        gone_as_event: Say 410 inside the watch, not as its status.
        page: Most pods on a page that is not served from the cache; a client's limit may be lower.
        watch_seconds: A watch ends well after this long, whatever the client asked for.
        remembers: Events; a watch from before them is told 410.
    """

    refuse: int | None = None
    refuse_watch: int | None = None
    hang: bool = False
    token: str | None = None
    gone_as_event: bool = False
    page: int = 1000
    watch_seconds: float = 3600.0
    remembers: int = 1000
    pods: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    expired_tokens: bool = False
    url: str = ""
    _events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    _version: int = 100
    _oldest: int = 0
    _watches: dict[asyncio.Queue[bytes | None], web.Request] = field(default_factory=dict)
    _filters: dict[asyncio.Queue[bytes | None], tuple[str | None, dict[str, str]]] = field(
        default_factory=dict
    )
    _runner: web.AppRunner | None = None
    tls: ssl.SSLContext | None = None
    ca_file: Path | None = None
    token_file: Path | None = None

    # --- life ---

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/api/v1/pods", self._answer)
        app.router.add_get("/api/v1/namespaces/{namespace}/pods", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        scheme = "http" if self.tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drop_watches()
        assert self._runner is not None
        await self._runner.cleanup()

    def place(self) -> Place:
        cluster = Cluster(url=self.url, token_file=self.token_file, ca_file=self.ca_file)
        return Place(cluster=cluster, node=NODE)

    # --- what happens in the cluster ---

    def put(self, each: dict[str, Any]) -> None:
        """A pod appears, or changes."""
        key = (each["metadata"]["namespace"], each["metadata"]["name"])
        self._happen("MODIFIED" if key in self.pods else "ADDED", key, copy.deepcopy(each))

    def delete(self, name: str, namespace: str = "chat") -> None:
        self._happen("DELETED", (namespace, name), self.pods[namespace, name])

    def _happen(self, kind: str, key: tuple[str, str], each: dict[str, Any]) -> None:
        self._version += 1
        each = copy.deepcopy(each)
        each["metadata"]["resourceVersion"] = str(self._version)
        if kind == "DELETED":
            del self.pods[key]
        else:
            self.pods[key] = each
        self._events.append((self._version, kind, each))
        if len(self._events) > self.remembers:
            self._oldest = self._events.pop(0)[0]
        for queue, (namespace, query) in self._filters.items():
            if _matches(each, namespace, query):
                queue.put_nowait(_line(kind, each))

    def compact(self) -> None:
        """Forget the past: watches from before now are told 410 when they come (again)."""
        self._oldest = self._version

    def move_on(self) -> None:
        """Something happens elsewhere in the cluster: versions grow."""
        self._version += 10

    def bookmark(self) -> None:
        mark = {"kind": "Pod", "metadata": {"resourceVersion": str(self._version)}}
        self.say(json.dumps({"type": "BOOKMARK", "object": mark}).encode())

    def say(self, line: bytes) -> None:
        """Any line, to all who watch."""
        for queue in self._watches:
            queue.put_nowait(line + b"\n")

    def error(self, code: int) -> None:
        status = {"kind": "Status", "status": "Failure", "code": code, "reason": "Expired"}
        self.say(json.dumps({"type": "ERROR", "object": {**status, "metadata": {}}}).encode())

    def end_watches(self) -> None:
        """As when timeoutSeconds are over."""
        for queue in self._watches:
            queue.put_nowait(None)

    def drop_watches(self) -> None:
        """Cut the connections in the middle."""
        for request in self._watches.values():
            if request.transport is not None:
                request.transport.abort()

    @property
    def watchers(self) -> int:
        return len(self._watches)

    # --- answers ---

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = Asked(request.path, dict(request.query), sent)
        self.asked.append(asked)
        while self.hang:  # noqa: ASYNC110 - a test sets an attribute
            await asyncio.sleep(0.01)
        if self.token is not None and sent != self.token:
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        refuse = self.refuse or (self.refuse_watch if asked.watch else None)
        if refuse is not None:
            return web.json_response({"kind": "Status", "code": refuse}, status=refuse)
        namespace = request.match_info.get("namespace")
        return (
            await self._watch(request, namespace) if asked.watch else self._list(asked, namespace)
        )

    def _list(self, asked: Asked, namespace: str | None) -> web.Response:
        query = asked.query
        found = [each for _, each in sorted(self.pods.items()) if _matches(each, namespace, query)]
        first = 0
        if "continue" in query:
            if self.expired_tokens:
                self.expired_tokens = False
                return web.json_response({"kind": "Status", "code": 410}, status=410)
            first = int(query["continue"])
        metadata: dict[str, Any] = {"resourceVersion": str(self._version)}
        # From the cache the whole list comes at once, as it does from a real server.
        if "resourceVersion" not in query:
            last = first + min(self.page, int(query.get("limit", "1000000")))
            if last < len(found):
                metadata |= {"continue": str(last), "remainingItemCount": len(found) - last}
            found = found[first:last]
        return web.json_response({"kind": "PodList", "metadata": metadata, "items": found})

    async def _watch(self, request: web.Request, namespace: str | None) -> web.StreamResponse:
        query = dict(request.query)
        since = int(query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if since < self._oldest:
            if not self.gone_as_event:
                return web.json_response({"kind": "Status", "code": 410}, status=410)
            await response.prepare(request)
            status = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "metadata": {}}}
            await response.write(json.dumps(status).encode() + b"\n")
            return response
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for version, kind, each in self._events:
            if version > since and _matches(each, namespace, query):
                queue.put_nowait(_line(kind, each))
        self._watches[queue], self._filters[queue] = request, (namespace, query)
        try:
            await response.prepare(request)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.watch_seconds):
                    while (line := await queue.get()) is not None:
                        # In two chunks, since lines and chunks have nothing to do with each other.
                        await response.write(line[:10])
                        await response.write(line[10:])
        finally:
            del self._watches[queue], self._filters[queue]
        return response


def _line(kind: str, each: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": {"kind": "Pod", **each}}).encode() + b"\n"


def _matches(each: dict[str, Any], namespace: str | None, query: dict[str, str]) -> bool:
    if query.get("fieldSelector") != f"spec.nodeName={each['spec']['nodeName']}":
        return False
    if namespace is not None and each["metadata"]["namespace"] != namespace:
        return False
    wanted = [part.split("=") for part in query.get("labelSelector", "").split(",") if part]
    labels = each["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in wanted)

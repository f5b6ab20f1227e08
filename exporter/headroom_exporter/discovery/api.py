"""
The Kubernetes API server: where it is, who we are, one request at a time, and what an answer is cut down to.
"""

from __future__ import annotations

import json
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headroom_exporter.discovery.pods import PREFIX
from headroom_exporter.errors import ConfigError, Malformed, SourceError, Unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    import aiohttp
    from yarl import URL

    from headroom_exporter.config import KubernetesConfig

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Fields of an answer that are kept while it is read, wherever they stand; annotations and labels are kept by
# prefix.
# A pod is 5 to 20 KB, of which we need some hundred bytes.
KEPT = frozenset(
    {
        *("type", "object", "kind", "items", "metadata", "spec", "status", "code", "reason"),
        *(
            "resourceVersion",
            "continue",
            "namespace",
            "name",
            "uid",
            "annotations",
            "labels",
            "phase",
            "podIP",
        ),
        *("containers", "initContainers", "restartPolicy", "ports", "containerPort", "protocol"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The API server; token and authority are read at each request, since both are replaced in place."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None


class Gone(SourceError):  # noqa: N818 - a state of the world, not a fault
    """The resourceVersion is too old: everything has to be listed anew."""

    kind = "gone"


def in_cluster(environ: Mapping[str, str] = os.environ) -> Cluster:
    """
    The cluster this process runs in.

    Raises:
        ConfigError: It runs in none.
    """
    host = environ.get("KUBERNETES_SERVICE_HOST", "")
    port = environ.get("KUBERNETES_SERVICE_PORT", "")
    if not re.fullmatch(r"[0-9A-Za-z.:-]+", host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ConfigError(
            "discovery: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT: must be set, as the "
            "kubelet does in a pod: node mode runs in a cluster"
        )
    bracketed = f"[{host}]" if ":" in host else host
    return Cluster(
        url=f"https://{bracketed}:{port}",
        token_file=SERVICE_ACCOUNT / "token",
        ca_file=SERVICE_ACCOUNT / "ca.crt",
    )


def node_name(config: KubernetesConfig, environ: Mapping[str, str] = os.environ) -> str:
    """
    The node to watch.

    Raises:
        ConfigError: Nobody says which.
    """
    name = config.node or environ.get("NODE_NAME", "")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
        raise ConfigError(
            f"discovery.kubernetes.node: {name!r}: must be a node's name, or NODE_NAME must be set "
            "(valueFrom.fieldRef.fieldPath: spec.nodeName)"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The node to watch, and who knows its pods."""

    cluster: Cluster
    node: str


def find_place(config: KubernetesConfig) -> Place:
    """
    Where this process runs, by its environment.

    Raises:
        ConfigError: It runs in no cluster, or nobody says on which node.
    """
    return Place(node=node_name(config), cluster=in_cluster())


class Api:
    """
    Asks the API server.

    Args:
        cluster: Where it is.
        session: HTTP client of the whole exporter.
    """

    def __init__(self, cluster: Cluster, session: aiohttp.ClientSession) -> None:
        self._cluster = cluster
        self._session = session
        self._authority: tuple[bytes, ssl.SSLContext] | None = None

    async def get(self, url: URL, query: Mapping[str, str]) -> aiohttp.ClientResponse:
        """
        One request that was answered with 200; the caller closes it.

        Raises:
            Gone: 410.
            SourceError: 401 (kind ``unauthorized``), 403 (``forbidden``), another status (``status``);
                token or authority cannot be read (``credentials``).
        """
        answer = await self._session.get(
            url,
            params=query,
            headers={"Accept": "application/json", **self._authorization()},
            ssl=self._tls(),
            allow_redirects=False,
        )
        if answer.status == 200:
            return answer
        answer.close()
        raise refused(answer.status)

    def _authorization(self) -> dict[str, str]:
        if self._cluster.token_file is None:
            return {}
        token = self._credential(self._cluster.token_file).decode("ascii", "replace").strip()
        if not token.isascii() or not token.isprintable() or not token:
            path = self._cluster.token_file
            raise SourceError(f"{path}: must hold one line of text", kind="credentials")
        return {"Authorization": f"Bearer {token}"}

    def _tls(self) -> ssl.SSLContext | bool:
        if self._cluster.ca_file is None:
            return True
        authority = self._credential(self._cluster.ca_file)
        if self._authority is None or self._authority[0] != authority:
            try:
                context = ssl.create_default_context(cadata=authority.decode("ascii", "replace"))
            except (ssl.SSLError, ValueError) as exc:
                where = self._cluster.ca_file
                raise SourceError(f"{where}: must be PEM certificates", kind="credentials") from exc
            # Python 3.13 asks for what the certificates of many clusters do not have (RFC 5280's
            # authority key identifier); 3.11 and 3.12 do not, and neither does kubectl.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            self._authority = (authority, context)
        return self._authority[1]

    @staticmethod
    def _credential(path: Path) -> bytes:
        try:
            # Some KB in memory, at each request, which is every few minutes.
            with path.open("rb") as file:
                return file.read(2**20)
        except OSError as exc:
            raise SourceError(f"{path}: {exc.strerror or exc}", kind="credentials") from exc


# --- answers -------------------------------------------------------------------------------------


def refused(status: int) -> SourceError:
    """What a status other than 200 means."""
    if status == 410:
        return Gone("the version is too old")
    if status == 401:
        return SourceError(
            "status 401: the API server does not accept the token", kind="unauthorized"
        )
    if status == 403:
        said = "status 403: the service account may not get, list and watch pods here"
        return SourceError(said, kind="forbidden")
    return SourceError(f"status {status}", kind="status")


def unreachable(error: Exception) -> Unreachable:
    """What went wrong on the way (kinds ``timeout`` and ``unreachable``)."""
    if isinstance(error, TimeoutError):
        return Unreachable("no answer in time", kind="timeout")
    # Its text may hold what the server sent.
    return Unreachable(f"{type(error).__name__}: {str(error)[:120]}")


def read(text: bytes) -> dict[str, Any]:
    """A JSON object; all but the fields that are KEPT is dropped while it is being read."""
    try:
        value = json.loads(text, object_hook=_prune)
    except (ValueError, RecursionError) as exc:
        raise Malformed(f"not JSON: {type(exc).__name__}", kind="malformed") from exc
    if not isinstance(value, dict):
        raise Malformed("not a JSON object", kind="malformed")
    return value


def _prune(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in found if key in KEPT or key.startswith(PREFIX)}


async def lines(content: aiohttp.StreamReader, limit: int) -> AsyncGenerator[bytes, None]:
    """
    Whole lines of a stream, without their ends; a last one that was cut off is left out.

    Raises:
        Malformed: A line is longer than ``limit`` bytes (kind ``too_large``).
    """
    buffer, searched = bytearray(), 0
    async for chunk in content.iter_any():
        buffer += chunk
        while (end := buffer.find(b"\n", searched)) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            searched = 0
            if line.strip():
                yield line
        searched = len(buffer)
        if searched > limit:
            raise Malformed(f"an event is longer than {limit} bytes", kind="too_large")

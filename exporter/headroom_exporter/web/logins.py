"""
Who may come in: basic auth, the rate limit, and the gate that asks for both.

With users in the web configuration every path asks for one, except /healthz and /readyz: a kubelet
can carry no secret in a probe (an httpHeaders entry would stand readable in the pod's description),
and they tell nothing but one word. For the same reason the rate limit passes them over: a probe
that fails restarts the pod. Where client certificates are required not even a probe gets in; use an
exec or tcpSocket probe then.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import secrets
import time
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp.typedefs import Handler, Middleware

    from headroom_exporter.web.file import RateLimit
    from headroom_exporter.web.settings import WebSettings

# New credentials that may wait for their bcrypt; known ones never wait.
_MAX_WAITING_LOGINS = 16
_REMEMBERED_LOGINS = 128
_PROBES = frozenset({"healthz", "readyz"})


def bcrypt_matches(password: bytes, hashed: bytes) -> bool:
    """Whether a password belongs to a bcrypt hash; takes as long as the hash's cost says."""
    import bcrypt  # noqa: PLC0415 - only where there are users

    # bcrypt looks at 72 bytes; tools that make hashes cut there silently, the library refuses.
    return bcrypt.checkpw(password[:72], hashed)


class Logins:
    """
    Checks names and passwords against bcrypt hashes, once for each pair that is tried.

    What came out is remembered, right and wrong apart, so that guesses cannot push out those who
    belong here. One bcrypt runs at a time, in a thread: it takes 50 ms of CPU and more, which the
    event loop and the engine beside us should not pay for guesses. Remembered are keyed digests, so
    a memory dump gives nothing that is cheaper to attack than the hashes.
    """

    def __init__(self, matches: Callable[[bytes, bytes], bool] = bcrypt_matches) -> None:
        self._matches = matches
        self._secret = secrets.token_bytes(32)
        self._right: dict[bytes, None] = {}
        self._wrong: dict[bytes, None] = {}
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0

    async def check(self, users: Mapping[str, str], name: str, password: bytes) -> bool:
        """
        Whether ``name`` is a user with this password; ``users`` must not be empty.

        Raises:
            HTTPTooManyRequests: too many new credentials are waiting.
        """
        # A stranger costs as much time as the user with the dearest hash, so time names nobody.
        hashed = users.get(name) or max(users.values(), key=lambda known: known.split("$")[2])
        digest = self._digest(name.encode(), hashed.encode(), password)
        answer = self._remembered(digest)
        if answer is not None:
            return answer
        if self._waiting >= _MAX_WAITING_LOGINS:
            raise web.HTTPTooManyRequests(text="too many logins at once\n")
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                answer = self._remembered(digest)
                if answer is None:
                    matched = await asyncio.to_thread(self._matches, password, hashed.encode())
                    answer = matched and name in users
                    self._remember(digest, answer)
                return answer
        finally:
            self._waiting -= 1

    def _digest(self, *parts: bytes) -> bytes:
        digest = hashlib.blake2b(key=self._secret, digest_size=32)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()

    def _remembered(self, digest: bytes) -> bool | None:
        return True if digest in self._right else False if digest in self._wrong else None

    def _remember(self, digest: bytes, answer: bool) -> None:
        known = self._right if answer else self._wrong
        known[digest] = None
        if len(known) > _REMEMBERED_LOGINS:
            del known[next(iter(known))]


def _credentials(header: str | None) -> tuple[str, bytes] | None:
    """Name and password of an Authorization header; None where it holds none (RFC 7617)."""
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (name.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None


class Bucket:
    """A token bucket over a monotonic clock."""

    def __init__(self, limit: RateLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._tokens = float(limit.burst)
        self._at = clock()

    def take(self) -> bool:
        """Whether one more request fits now."""
        now = self._clock()
        self._tokens = min(self.limit.burst, self._tokens + (now - self._at) / self.limit.interval)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def gate(settings: WebSettings, logins: Logins) -> Middleware:
    """Lets in who the web configuration of that moment lets in; 401 or 429 for the others."""
    bucket: Bucket | None = None

    def fits(limit: RateLimit | None) -> bool:
        nonlocal bucket
        if limit is None:
            return True
        if bucket is None or bucket.limit != limit:
            bucket = Bucket(limit)
        return bucket.take()

    @web.middleware
    async def let_in(request: web.Request, handler: Handler) -> web.StreamResponse:
        rules = settings.current()
        # By route, not by path: no spelling of a path can borrow the exemption.
        if request.match_info.route.name in _PROBES:
            return await handler(request)
        if not fits(rules.rate_limit):
            raise web.HTTPTooManyRequests(text="too many requests\n")
        if rules.users:
            given = _credentials(request.headers.get(hdrs.AUTHORIZATION))
            if given is None or not await logins.check(rules.users, *given):
                raise web.HTTPUnauthorized(
                    text="name and password needed\n",
                    headers={hdrs.WWW_AUTHENTICATE: 'Basic realm="headroom", charset="UTF-8"'},
                )
        return await handler(request)

    return let_in

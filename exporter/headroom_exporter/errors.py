"""
The error tree.

HeadroomError
├── ConfigError            the configuration cannot be used; raised before any port opens; exit status 2
├── ListenError            the system refuses an address to listen on; exit status 1
└── SourceError            one source failed, as expected in the world; caught once per source and poll
    ├── NoData             this host or version has none: the source stays up
    ├── Unreachable        refused, reset, timed out
    ├── Malformed          bad status, wrong type, unparsable or oversized answer
    │   └── NotThere       there is no such page: 400, 404, 405, 501
    └── Lost               a GPU fell off the bus

Anything else is a bug: logged with its traceback, counted as kind ``bug``; the other sources go on.
"""

from __future__ import annotations


class HeadroomError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(HeadroomError):
    """
    A configuration that cannot be used.

    The text names the file, the key's path, the value found and what is allowed.
    """


class ListenError(HeadroomError):
    """
    An address that is well written but cannot be listened on, here and now.

    In use, not permitted, not of this machine: the same command may work elsewhere or later.
    """


class SourceError(HeadroomError):
    """
    A source (an engine or a GPU) that did not answer usefully.

    Attributes:
        kind: Short stable word for the ``kind`` label of the error counters.
    """

    kind = "source"

    def __init__(self, message: str, *, kind: str | None = None) -> None:
        super().__init__(message)
        if kind is not None:
            self.kind = kind


class NoData(SourceError):  # noqa: N818 - a state of the world, not a fault
    """The source has no such data here; it stays up."""

    kind = "no_data"


class Unreachable(SourceError):  # noqa: N818
    """Refused, reset or timed out."""

    kind = "unreachable"


class Malformed(SourceError):  # noqa: N818
    """
    An answer that cannot be trusted: status, type, size or text.

    Attributes:
        status: The HTTP status, where that is what was wrong.
    """

    kind = "malformed"

    def __init__(self, message: str, *, kind: str | None = None, status: int | None = None) -> None:
        super().__init__(message, kind=kind)
        self.status = status


class NotThere(Malformed):
    """The server has no page at this path, which says nothing of its others."""

    kind = "status"


class Lost(SourceError):  # noqa: N818
    """A GPU fell off the bus and stays lost until the driver is reloaded."""

    kind = "lost"

"""
The HTTP server, and the web configuration file that says who may come in and how.

``pages`` is what visitors find, ``assets`` and ``status`` the status page's files and API; ``server`` the
sockets, ``logins`` the door; ``settings`` follows the file that ``file`` reads, ``tls`` makes its
certificates usable.
"""

from headroom_exporter.web.logins import Logins
from headroom_exporter.web.pages import build_app
from headroom_exporter.web.server import Server, parse_listen, serve
from headroom_exporter.web.settings import WebSettings
from headroom_exporter.web.status import StatusApi

__all__ = ["Logins", "Server", "StatusApi", "WebSettings", "build_app", "parse_listen", "serve"]

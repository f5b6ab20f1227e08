"""
The HTTP server, and the web configuration file that says who may come in and how.

``pages`` is what visitors find, ``server`` the sockets, ``logins`` the door; ``settings`` follows the
file that ``file`` reads, ``tls`` makes its certificates usable.
"""

from headroom_exporter.web.logins import Logins
from headroom_exporter.web.pages import build_app
from headroom_exporter.web.server import Server, parse_listen, serve
from headroom_exporter.web.settings import WebSettings

__all__ = ["Logins", "Server", "WebSettings", "build_app", "parse_listen", "serve"]

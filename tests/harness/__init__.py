"""What the tests share: processes with ready-waits, a scriptable origin, raw clients, deadlines.

Nothing here sleeps to synchronise: every wait is for a condition and has a deadline.
"""

from .client import Client, Response, curl, get, request, tool
from .netns import NetNs
from .origin import Connection, Origin, Request, respond, say
from .peers import HAProxy, Nginx
from .proxy import Proxy, binary
from .tools import Deadline, eventually, free_port

__all__ = [
    "Client",
    "Connection",
    "Deadline",
    "HAProxy",
    "NetNs",
    "Nginx",
    "Origin",
    "Proxy",
    "Request",
    "Response",
    "binary",
    "curl",
    "eventually",
    "free_port",
    "get",
    "request",
    "respond",
    "say",
    "tool",
]

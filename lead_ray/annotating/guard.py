"""Who may speak to the server: pages that it served itself, opened with the secret address that it printed.

Three things would otherwise let another web page in the same browser read pictures or write labels: requests that it
sends across (stopped by Origin and by the secret), a name of its own that it lets point to this machine (stopped by
Host), and being shown inside it (stopped by frame-ancestors).
"""

import hmac
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from yarl import URL

LOOPBACK = {"127.0.0.1", "localhost", "::1"}  # any port: it may be forwarded to another one by ssh
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refusal(headers: Mapping[str, str], method: str, secret: str, expected: str) -> str | None:
    """Why a request is refused; None: it is not.

    Args:
        headers: of the request.
        secret: what its address begins with.
        expected: what it should begin with.
    """
    host = headers.get("Host", "")
    try:
        name = URL(f"http://{host}").host
    except ValueError:
        name = None
    if name not in LOOPBACK:
        return "this server speaks to this machine only: open http://127.0.0.1:PORT/..."
    origin = headers.get("Origin")
    if origin is not None and origin != f"http://{host}":
        return "requests come from the server's own page only"
    if not hmac.compare_digest(secret.encode("utf-8", "replace"), expected.encode()):
        return "not the address that lead-ray annotate printed: copy it whole"
    if method == "POST" and headers.get("Content-Type", "").split(";")[0] != "application/json":
        return "send application/json"
    return None


def guard(expected: str) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """Middleware that answers refused requests with 403 and the reason."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        secret = request.path.split("/")[1]
        if (reason := refusal(request.headers, request.method, secret, expected)) is not None:
            return web.json_response({"error": reason}, status=403, headers=HEADERS)
        return await handler(request)

    return middleware


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers to every answer before it is sent."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)

"""The page's server: pictures and state out, edits in, and a stream of what others change."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from aiohttp import web

from lead_ray.annotating import pictures
from lead_ray.annotating.choose import ORDERS
from lead_ray.annotating.desk import Desk
from lead_ray.annotating.exports import EXPORTS, export
from lead_ray.annotating.guard import guard, sign
from lead_ray.annotating.hub import Hub
from lead_ray.annotating.pictures import BadImage
from lead_ray.annotating.project import Conflict

PAGE = resources.files("lead_ray.annotating") / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def application(desk: Desk, hub: Hub, secret: str) -> web.Application:
    """All addresses begin with /SECRET/."""
    server = _Server(desk, hub)
    app = web.Application(middlewares=[guard(secret), _in_words])
    app.on_response_prepare.append(sign)
    app.on_shutdown.append(hub.close)
    base = "/{secret}"
    get: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
        "/": server.page,
        "/page/{file}": server.page,
        "/events": server.events,
        "/api/state": server.state,
        "/api/images": server.images,
        "/api/images/{key}": server.image,
        "/api/next": server.next,
        "/picture/{key}": server.picture,
        "/thumbnail/{key}": server.thumbnail,
    }
    post = {
        "/api/points": server.points,
        "/api/box": server.box,
        "/api/skip": server.skip,
        "/api/schema": server.schema,
        "/api/export": server.export,
    }
    app.add_routes([web.get(base + path, handler) for path, handler in get.items()])
    app.add_routes([web.post(base + path, handler) for path, handler in post.items()])
    return app


@web.middleware
async def _in_words(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Errors as the page shows them."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return web.json_response({"error": error.text or error.reason}, status=error.status)
    except Conflict as error:
        return web.json_response({"error": str(error)}, status=409)
    except KeyError:
        return web.json_response({"error": "there is no such picture"}, status=404)
    except BadImage as error:
        return web.json_response({"error": f"this picture {error}"}, status=422)
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=400)
    except OSError as error:
        return web.json_response({"error": f"not saved: {error}"}, status=507)


class _Server:
    def __init__(self, desk: Desk, hub: Hub):
        self.desk, self.hub = desk, hub

    async def page(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("file", "index.html")
        # Looked up among what the package carries, never joined to a path.
        found = next((file for file in PAGE.iterdir() if file.name == name), None)
        if found is None:
            raise web.HTTPNotFound(text=f"no {name} here")
        kind = TYPES["." + name.rpartition(".")[2]]
        return web.Response(body=found.read_bytes(), content_type=kind, charset="utf-8")

    async def state(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await asyncio.to_thread(self.desk.state) | {"formats": EXPORTS})

    async def images(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        page = await asyncio.to_thread(
            self.desk.images,
            which=query.get("which", "all"),
            search=query.get("search", ""),
            start=_number(query.get("start", "0")),
            count=_number(query.get("count", "100")),
        )
        return web.json_response(page)

    async def image(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await asyncio.to_thread(self.desk.image, request.match_info["key"]))

    async def next(self, request: web.Request) -> web.StreamResponse:
        order = request.query.get("order", ORDERS[0])
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        return web.json_response(await asyncio.to_thread(self.desk.next, order, request.query.get("after")))

    async def picture(self, request: web.Request) -> web.StreamResponse:
        path = self.desk.path(request.match_info["key"])
        body, kind = await asyncio.to_thread(pictures.shown, path)
        return web.Response(body=body, content_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    async def thumbnail(self, request: web.Request) -> web.StreamResponse:
        path = self.desk.path(request.match_info["key"])
        body = await asyncio.to_thread(pictures.thumbnail, path)
        return web.Response(body=body, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def points(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await asyncio.to_thread(self.desk.edit, await _body(request)))

    async def box(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await asyncio.to_thread(self.desk.edit_box, await _body(request)))

    async def skip(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await asyncio.to_thread(self.desk.skip, await _body(request)))

    async def schema(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await asyncio.to_thread(self.desk.edit_schema, await _body(request)))

    async def export(self, request: web.Request) -> web.StreamResponse:
        content = await _body(request)
        path = await asyncio.to_thread(export, self.desk.project, str(content.get("format")))
        return web.json_response({"file": str(path)})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events; whoever comes back compares revisions and asks for the state if they differ."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with self.hub.subscribed() as queue:
            event: dict[str, Any] | None = {"kind": "hello", "revision": self.desk.revision()}
            while event is not None:
                try:
                    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                    event = await asyncio.wait_for(queue.get(), timeout=15)
                except TimeoutError:
                    event = {"kind": "alive"}  # so that a page which is gone is noticed
                except ConnectionError:
                    break
        return response


async def _body(request: web.Request) -> dict[str, Any]:
    content = await request.json()
    if not isinstance(content, dict):
        raise ValueError("send one JSON object")
    return content


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"start and count must be numbers, got {text!r}")
    return int(text)

"""What happens, told to every open page."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

ROOM = 1000  # events that a page may be behind before it has to begin anew


class Hub:
    """Events from any thread to the queues of the pages."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[dict[str, Any] | None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def publish(self, event: dict[str, Any]) -> None:
        """Tell all pages; from any thread, in the order of the calls."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._spread, event)

    @contextmanager
    def subscribed(self) -> Iterator[asyncio.Queue]:
        """A page's queue; None in it says that the server ends, or that the page fell too far behind."""
        self._loop = asyncio.get_running_loop()
        queue: asyncio.Queue = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    async def close(self, app: web.Application) -> None:
        """The server ends."""
        self._end(list(self._queues))

    def _spread(self, event: dict[str, Any]) -> None:
        late = [queue for queue in self._queues if queue.qsize() >= ROOM]
        for queue in self._queues:
            queue.put_nowait(event)
        self._end(late)

    def _end(self, queues: list[asyncio.Queue]) -> None:
        for queue in queues:
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)

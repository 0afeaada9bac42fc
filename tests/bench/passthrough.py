"""What a gateway on aiohttp cannot go below: it sends on what arrives, and looks at nothing.

Run as `python -m tests.bench.passthrough PORT UPSTREAM_URL`.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

PASSED = ("authorization", "content-type")


class PassThrough:
    """One upstream, asked with what each client sent."""

    def __init__(self, upstream: aiohttp.ClientSession, url: str) -> None:
        self._upstream = upstream
        self._url = url

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in PASSED}
        async with self._upstream.post(self._url, data=await request.read(), headers=headers) as answer:
            kind = answer.headers["content-type"]
            if not kind.startswith("text/event-stream"):
                return web.Response(status=answer.status, body=await answer.read(), headers={"content-type": kind})
            response = web.StreamResponse(status=answer.status, headers={"content-type": kind})
            await response.prepare(request)
            async for part in answer.content.iter_any():
                await response.write(part)
            await response.write_eof()
            return response


async def main(port: int, url: str) -> None:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as upstream:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", PassThrough(upstream, url).handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))

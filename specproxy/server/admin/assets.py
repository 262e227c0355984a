"""The dashboard's files, served as they are: no build step, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

PAGE = Path(__file__).parent / "page"

PUBLIC = {
    "/": ("index.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/api.js": ("api.js", "text/javascript"),
    "/page/charts.js": ("charts.js", "text/javascript"),
    "/page/view.js": ("view.js", "text/javascript"),
    "/page/app.js": ("app.js", "text/javascript"),
}
"""Path → file and type. They hold no secret: what they show, they ask for with the key that a person typed."""


def add_page(app: web.Application) -> None:
    """Serve the page. The files are read once: they are small, and part of the program."""
    content = {path: ((PAGE / name).read_bytes(), kind) for path, (name, kind) in PUBLIC.items()}

    async def serve(request: web.Request) -> web.Response:
        body, kind = content[request.path]
        return web.Response(body=body, content_type=kind, charset="utf-8")

    for path in content:
        app.router.add_get(path, serve)

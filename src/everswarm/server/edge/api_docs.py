"""The page that documents the API. Swagger UI comes from this server itself, so that it works without the internet."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from everswarm.server.edge.browser_headers import content_policy

_FILES = "/static/docs"


def serve_api_docs(app: FastAPI, *, path: str) -> None:
    """Serve Swagger UI for `app` at `path`; call it before anything else is mounted at `/static`."""
    page = get_swagger_ui_html(
        openapi_url=app.openapi_url or "",
        title=f"{app.title}: API documentation",
        swagger_js_url=f"{_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{_FILES}/swagger-ui.css",
        swagger_favicon_url="/static/icon.svg",
    )
    html = bytes(page.body).decode()
    headers = {"Content-Security-Policy": content_policy(html)}
    # a package that carries the files of Swagger UI, of which we use no code
    app.mount(_FILES, StaticFiles(packages=[("fastapi_swagger", "resources")]), name="docs-files")

    @app.get(path, include_in_schema=False)
    def show_api_docs() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

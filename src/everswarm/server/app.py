"""The server, put together: rooms, errors, limits, and what starts and stops with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

import everswarm
from everswarm.server.auth.routes import router as auth_router
from everswarm.server.batches import UPLOAD_BODY_BYTES, UPLOAD_PATH, BatchRunner
from everswarm.server.batches.routes import router as batches_router
from everswarm.server.cycles.routes import router as cycles_router
from everswarm.server.cycles.service import CycleService
from everswarm.server.database import Database
from everswarm.server.documents.routes import router as documents_router
from everswarm.server.edge.api_docs import serve_api_docs
from everswarm.server.edge.body_limit import BodyLimit
from everswarm.server.edge.browser_headers import BrowserHeaders, content_policy
from everswarm.server.edge.express import ExpressApp
from everswarm.server.edge.problems import PROBLEM_RESPONSES, install_error_handlers
from everswarm.server.erasure import Retention
from everswarm.server.erasure.routes import router as erasures_router
from everswarm.server.feedback.ingest import Ingest
from everswarm.server.feedback.rate import RecordLimit
from everswarm.server.feedback.reviews.routes import router as reviews_router
from everswarm.server.feedback.routes import router as feedback_router
from everswarm.server.feedback.scrubbing import text_mask
from everswarm.server.feedback.service import check_key
from everswarm.server.feedback.upload import FEEDBACK_PATH, upload_training_feedback
from everswarm.server.fleet.routes import router as fleet_router
from everswarm.server.gateway import Gateway, record_usage
from everswarm.server.gateway.routes import router as gateway_router
from everswarm.server.registry import ArtifactStore
from everswarm.server.registry.routes import router as registry_router
from everswarm.server.reports.routes import router as reports_router
from everswarm.server.swarm.chat import CHAT_PATH, chat_completions
from everswarm.server.swarm.escalation import Escalations
from everswarm.server.swarm.escalation_routes import router as escalations_router
from everswarm.server.swarm.routes import interactions as traces_router
from everswarm.server.swarm.routes import router as swarm_router
from everswarm.server.swarm.service import Swarm
from everswarm.server.threads.routes import router as threads_router
from everswarm.settings import Settings

STATIC = Path(__file__).parent / "static"
DOCS_PATH = "/docs"
LISTEN_FIRST_SECONDS = 0.2  # how long the launch of the cycles waits, so that the server listens before it

ROUTERS: tuple[APIRouter, ...] = (
    auth_router,
    registry_router,
    feedback_router,
    reviews_router,
    erasures_router,
    gateway_router,
    swarm_router,
    traces_router,
    escalations_router,
    threads_router,
    documents_router,
    batches_router,
    fleet_router,
    cycles_router,
    reports_router,
)
TAGS = [
    {"name": "swarm", "description": "Chat, in the protocol of OpenAI. Any OpenAI client works."},
    {"name": "threads", "description": "Conversations that are kept."},
    {"name": "documents", "description": "Texts of your own, which the swarm can search."},
    {"name": "gateway", "description": "How much the models may still be asked, and what they were asked."},
    {"name": "batches", "description": "Files of chats, answered within a day when quotas allow, as OpenAI does it."},
    {"name": "feedback", "description": "Judgements on interactions, one by one or in batches from devices."},
    {"name": "reviews", "description": "Records that people should look at before anything learns from them."},
    {"name": "erasures", "description": "What is stored of somebody, gone; and what was trained with it."},
    {"name": "fleet", "description": "Devices, and the models that they should run."},
    {"name": "cycles", "description": "Passes of the training loop, and the jobs that workers take from it."},
    {"name": "artifacts", "description": "Files, named by their sha256."},
    {"name": "keys", "description": "Who may call, and what for."},
    {"name": "reports", "description": "How the server is."},
]


def create_app(settings: Settings) -> FastAPI:
    """Return the server for `settings`. Nothing is opened before it starts; the caller holds the `HomeLock`.

    While it runs, `app.state` has `settings`, `database`, `ingest`, `record_limit`, `artifacts`, `gateway`, `swarm`,
    `batches` and `cycles`.
    """
    app = ExpressApp(
        title="everswarm",
        version=everswarm.__version__,
        description="A self-hosted swarm of open language models that trains itself.",
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        responses=PROBLEM_RESPONSES,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=_lifespan,
    )
    app.state.settings = settings
    install_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes, uploads={UPLOAD_PATH: UPLOAD_BODY_BYTES})
    _serve_page(app)
    app.express = {CHAT_PATH: chat_completions, FEEDBACK_PATH: upload_training_feedback}
    app.express_body_bytes = settings.max_body_bytes
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open what the rooms need, in order; close it in the opposite order."""
    settings: Settings = app.state.settings
    async with AsyncExitStack() as opened:
        database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file, mask=text_mask(settings.feedback))
        opened.callback(database.close)
        await run_in_threadpool(database.migrate)
        await run_in_threadpool(check_key, database)
        app.state.database = database
        app.state.ingest = Ingest(database)
        opened.push_async_callback(app.state.ingest.stop)
        app.state.record_limit = RecordLimit(settings.feedback.records_per_hour)
        app.state.artifacts = ArtifactStore(settings.artifacts_root, database)
        app.state.gateway = Gateway.from_settings(settings, record=partial(record_usage, database))
        opened.push_async_callback(app.state.gateway.close)
        await app.state.gateway.start()
        app.state.swarm = Swarm(app.state.gateway, database, settings)
        opened.push_async_callback(app.state.swarm.close)
        await app.state.swarm.start()
        app.state.escalations = Escalations(database)
        retention = Retention(database, settings)
        retention.start()
        opened.push_async_callback(run_in_threadpool, retention.stop)
        app.state.batches = BatchRunner(database, app.state.swarm)
        app.state.batches.start()
        opened.push_async_callback(app.state.batches.stop)
        await opened.enter_async_context(_cycles_running(app))
        yield


@asynccontextmanager
async def _cycles_running(app: FastAPI) -> AsyncIterator[None]:
    """Launch the cycles soon after the server listens; until then health says `cycles: starting`."""
    cycles = CycleService(app.state.database, app.state.artifacts, app.state.settings)
    app.state.cycles = cycles
    launch = asyncio.get_running_loop().call_later(LISTEN_FIRST_SECONDS, cycles.start)
    try:
        yield
    finally:
        launch.cancel()
        await run_in_threadpool(cycles.stop)


def _serve_page(app: FastAPI) -> None:
    """Serve the page at `/`, its files at `/static`, and the documentation of the API."""
    serve_api_docs(app, path=DOCS_PATH)
    index = STATIC / "index.html"
    page = index.read_text(encoding="utf-8") if index.is_file() else ""
    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")

    @app.get("/", include_in_schema=False)
    def show_page() -> FileResponse:
        return FileResponse(index, headers={"Cache-Control": "no-cache"})

    app.add_middleware(BrowserHeaders, policy=content_policy(page))

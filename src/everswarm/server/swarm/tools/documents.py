"""The tool that searches the user's own documents."""

from __future__ import annotations

from fastapi.concurrency import run_in_threadpool

from everswarm.server.database import Database
from everswarm.server.documents.service import search_text
from everswarm.server.swarm.tools.tool import Arguments, Tool, ToolFailedError

QUERY_CHARACTERS = 4000


def documents_tool(database: Database) -> Tool:
    """Return the search over the documents in `database` that belong to who asks."""

    async def run(arguments: Arguments, user: str) -> str:
        query = arguments.get("query")
        if not isinstance(query, str) or not query.strip():
            raise ToolFailedError("query should be the words to search for")
        return await run_in_threadpool(search_text, database, user, query[:QUERY_CHARACTERS])

    return Tool(
        name="documents",
        allow_name="documents",
        description="Search the user's own documents; gives the passages that fit best.",
        parameters={
            "type": "object",
            "properties": {"query": {"type": "string", "description": "words to search for"}},
            "required": ["query"],
        },
        run=run,
    )

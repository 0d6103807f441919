"""`/api/documents`: a user's own texts. A key sees its own; an admin's those of whom it names with `?user=`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from everswarm.schemas.document import Document, DocumentCreate, DocumentText, FoundPassage
from everswarm.server.auth import ActingUserDep
from everswarm.server.database import DatabaseDep
from everswarm.server.documents import service

router = APIRouter(prefix="/api/documents", tags=["documents"])


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    responses={200: {"model": Document, "description": "The same title and text are there already"}},
)
def add_document(database: DatabaseDep, user: ActingUserDep, request: DocumentCreate, response: Response) -> Document:
    """Keep a text, so that the swarm can search it. 201 when it is new, 200 when it was there already."""
    document, is_new = service.add_document(database, user, request)
    if not is_new:
        response.status_code = status.HTTP_200_OK
    return document


@router.get("")
def list_documents(
    database: DatabaseDep, user: ActingUserDep, limit: Annotated[int, Query(ge=1, le=1_000)] = 50
) -> list[Document]:
    """Your documents without their texts, the newest first."""
    return service.list_documents(database, user, limit=limit)


@router.get("/search")
def search_documents(
    database: DatabaseDep, user: ActingUserDep, q: str, limit: Annotated[int, Query(ge=1, le=50)] = 10
) -> list[FoundPassage]:
    """The passages of your documents with any of the words of `q`, the best first."""
    found = service.search_documents(database, user, q, limit=limit)
    return [FoundPassage(**passage._asdict()) for passage in found]


@router.get("/{document_id}")
def get_document(database: DatabaseDep, user: ActingUserDep, document_id: str) -> DocumentText:
    """One document with its text."""
    return service.get_document(database, user, document_id)


@router.delete("/{document_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete_document(database: DatabaseDep, user: ActingUserDep, document_id: str) -> None:
    """Delete a document and its passages."""
    service.delete_document(database, user, document_id)

"""What is left after an erasure, and what to do about it, as sentences. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from everswarm.server.erasure.lineage import Lineage

NAMES_SHOWN = 5


def next_steps(
    lineage: Lineage,
    *,
    device_keys: Collection[str],
    files_left: int,
    unread: Collection[str],
    other_batch_files: bool,
) -> list[str]:
    """Return what somebody who wants all of it gone should know.

    Args:
        lineage: what had seen it.
        device_keys: names of keys (`key-…`) by which it sent.
        files_left: files of ended cycles that hold it and were not to be deleted.
        unread: cycles that began while the others were looked at.
        other_batch_files: there are uploaded files of chats, of other keys; nobody looked into them.
    """
    return [
        *_of_releases(lineage),
        *_of_files(lineage, files_left, unread),
        *_of_keys(device_keys),
        *_of_batches(other_batch_files),
    ]


def _of_releases(lineage: Lineage) -> Iterator[str]:
    if any(seen.dataset is not None for seen in lineage.seen):
        yield (
            "No dataset from now on has it. What was trained before cannot unlearn it; a new cycle makes an adapter "
            "without it: everswarm cycle run."
        )
    for seen in lineage.seen:
        if seen.release_state == "in use":
            yield (
                f"Release {seen.release} ({seen.role}) was trained with it and is in use, on {seen.device_count} "
                "devices that this server knows of. The next release for this role replaces it."
            )


def _of_files(lineage: Lineage, files_left: int, unread: Collection[str]) -> Iterator[str]:
    running = sorted({*lineage.running, *unread})
    if running:
        shown = ", ".join(running[:NAMES_SHOWN])
        yield (
            f"Still running, and may have it in their files: {shown}. Wait, or end them with everswarm cycle cancel "
            "ID; then erase again."
        )
    if files_left:
        yield (
            f"{files_left} files of ended cycles still hold it. An administrator can have them deleted: erase again "
            "with --files."
        )
    if lineage.seen:
        yield "Workers keep copies of the files that they fetched for 7 days. Backups are not reached."


def _of_keys(device_keys: Collection[str]) -> Iterator[str]:
    if device_keys:
        yield (
            "Its key is not revoked, and it may have more to send. To end that: everswarm keys list, then everswarm "
            f"keys revoke ID, where ID ends as in {', '.join(sorted(device_keys))}."
        )


def _of_batches(other_batch_files: bool) -> Iterator[str]:
    if other_batch_files:
        yield (
            "Files of chats (/v1/files) of other keys were not looked into, such as the questions that a worker put to "
            "a teacher, which may hold corrections. They are deleted when their time is over: a worker's after 2 days."
        )

"""Which key may send for which device: a key sends for one, and a device's id is of one valid key."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from everswarm.errors import ForbiddenError
from everswarm.server.database import take_turns
from everswarm.server.feedback import repository
from everswarm.server.feedback.drafting import Submission


class Claims:
    """Who sends for which device, as far as it was seen. What came last counts."""

    def __init__(self) -> None:
        self._device_of: dict[str, str] = {}
        self._sender_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._device_of)

    def add(self, sender: str, device: str) -> None:
        """Note that `sender` sends for `device`."""
        self._device_of[sender] = device
        self._sender_of[device] = sender

    def update(self, others: Claims) -> None:
        """Note all that `others` has."""
        self._device_of |= others._device_of
        self._sender_of |= others._sender_of

    def clear(self) -> None:
        """Forget all."""
        self._device_of.clear()
        self._sender_of.clear()

    def has(self, sender: str, device: str) -> bool:
        """Say whether `sender` sends for `device`, and nobody else came to do so since."""
        return self._device_of.get(sender) == device and self._sender_of.get(device) == sender

    def device_of(self, sender: str) -> str | None:
        """Return the device that `sender` sends for."""
        return self._device_of.get(sender)

    def sender_of(self, device: str) -> str | None:
        """Return who sends for `device`."""
        return self._sender_of.get(device)


def refusals(connection: Connection, submissions: Sequence[Submission], known: Claims) -> list[ForbiddenError | None]:
    """Return for each submission why it must not be stored; what is learnt is added to `known`."""
    # in one order, else two servers could wait for each other
    for sender in sorted({one.sender for one in submissions if one.only_device is not None and one.sender is not None}):
        take_turns(connection, "sender", sender)
    now = Claims()  # in this transaction
    found: list[ForbiddenError | None] = []
    for one in submissions:
        found.append(_refusal(connection, one, now, known))
        if found[-1] is None and one.items and one.sender and one.only_device:
            now.add(one.sender, one.only_device)
    known.update(now)
    return found


def _refusal(connection: Connection, submission: Submission, now: Claims, known: Claims) -> ForbiddenError | None:
    sender, device = submission.sender, submission.only_device
    if sender is None or device is None:
        return None
    claimed = now.device_of(sender)
    if claimed is None and known.has(sender, device) and now.sender_of(device) is None:
        return None
    other = claimed or repository.device_of(connection, sender)
    if other == device:
        return None  # its own before: nobody else can have come to it since
    if other is not None:
        return ForbiddenError(
            f"The key {submission.sender_label!r} sends for the device {other!r} and cannot send for {device!r}. "
            "Each device needs a key of its own: everswarm keys create --scope device."
        )
    take_turns(connection, "devices", "senders")  # one for all devices: a key comes to its device once
    if now.sender_of(device) is None and not repository.has_valid_sender(connection, device, other_than=sender):
        return None
    return ForbiddenError(
        f"The device id {device!r} belongs to another key. Choose another id for this device, or have that key "
        "revoked: everswarm keys revoke."
    )

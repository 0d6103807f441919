"""Every error that a user can meet. One class, one HTTP status; mapped to HTTP once, in `server/app.py`.

* EverswarmError (500)
  + BadRequestError (422)            the payload or the argument is wrong
  + UnauthorizedError (401)          no key, or one that is not known
  + ForbiddenError (403)             the key lacks the scope
  + NotFoundError (404)
  + ConflictError (409)              the state has moved on; a stale lease
  + TooLargeError (413)
  + UnavailableError (503)           every endpoint is down, or a part is still starting
    + QuotaSpentError (429)
      + CreditSpentError               the endpoint wants money (its 402): closed until the credit is renewed
  + ConfigurationError (500, exit 2) settings, files or extras that the operator must mend
    + MissingExtraError
  + DigestMismatchError (422)        a file is not the one that was promised
  + NotEnoughFeedbackError (422)
  + StageFailedError (500)           a stage of a cycle ended with an error
  + NoSpaceError (507)               the disk is full
"""

from __future__ import annotations


class EverswarmError(Exception):
    """Base of all. The text says what was asked, what the limit is, what to do next."""

    status = 500
    title = "Internal error"
    exit_code = 1
    retry_after_seconds: int | None = None


class BadRequestError(EverswarmError):
    """The payload or an argument cannot be used as it is."""

    status = 422
    title = "Cannot be used as sent"
    exit_code = 2


class UnauthorizedError(EverswarmError):
    """No key was sent, or the key is not known."""

    status = 401
    title = "Key needed"


class ForbiddenError(EverswarmError):
    """The key is known, and its scope does not allow this."""

    status = 403
    title = "Not allowed with this key"


class NotFoundError(EverswarmError):
    """Nothing has this name or id."""

    status = 404
    title = "Not found"


class ConflictError(EverswarmError):
    """What was asked no longer fits the state of the thing, such as a lease that another worker holds."""

    status = 409
    title = "State has changed"


class TooLargeError(EverswarmError):
    """A body or a file is over its limit."""

    status = 413
    title = "Too large"


class UnavailableError(EverswarmError):
    """A part that is needed does not answer now; trying later may help."""

    status = 503
    title = "Not available now"

    def __init__(self, message: str, *, retry_after_seconds: int = 5) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QuotaSpentError(UnavailableError):
    """An endpoint takes no more requests until its window moves on."""

    status = 429
    title = "Quota spent"


class CreditSpentError(QuotaSpentError):
    """An endpoint's credit is used up. Asking again soon does not help."""


class ConfigurationError(EverswarmError):
    """The operator must mend a setting, a file or an installation."""

    title = "Configuration"
    exit_code = 2


class MissingExtraError(ConfigurationError):
    """A library of an extra is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the '{extra}' extra. Install it with: pip install 'everswarm[{extra}]'")


class DigestMismatchError(EverswarmError):
    """The bytes are not those that the sha256 promised."""

    status = 422
    title = "Wrong digest"

    def __init__(self, what: str, *, expected: str, found: str) -> None:
        super().__init__(
            f"{what}: expected sha256 {expected}, found {found}. The file was not used; fetch it again, "
            "and if it happens again, do not trust its source."
        )


class NotEnoughFeedbackError(EverswarmError):
    """A cycle was asked for and there is too little to learn from."""

    status = 422
    title = "Not enough feedback"


class StageFailedError(EverswarmError):
    """A stage of a cycle ended with an error after its retries."""

    title = "Stage failed"


class NoSpaceError(EverswarmError):
    """The disk is full; nothing was half-written."""

    status = 507
    title = "No space left"


def error_for_status(status: int, message: str, *, retry_after_seconds: int | None = None) -> EverswarmError:
    """Return the error that the server meant by `status`; the client raises it on its side of the wall."""
    for waiting in (UnavailableError, QuotaSpentError):
        if status == waiting.status:
            return waiting(message, retry_after_seconds=retry_after_seconds or 5)
    by_status: dict[int, type[EverswarmError]] = {
        kind.status: kind
        for kind in (UnauthorizedError, ForbiddenError, NotFoundError, ConflictError, TooLargeError, NoSpaceError)
    }
    by_status[422] = BadRequestError
    return by_status.get(status, EverswarmError)(message)

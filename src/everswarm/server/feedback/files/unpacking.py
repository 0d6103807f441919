"""Opening a file that somebody gives us: plain or gzip, and never more of it than is safe. Knows no format."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from everswarm.errors import BadRequestError

UNPACKED_BYTES = 20 * 1000**3  # of one file
HARMLESS_BYTES = 64 * 1024**2  # so much may come out, however small the file is
MOST_TIMES_LARGER = 200  # unpacked than packed; text of people is 3 to 10 times, the same line again and again 300
BUFFER_BYTES = 1 << 18
_GZIP = b"\x1f\x8b"
_NOT_LINES = {
    b"PK\x03\x04": "is a zip archive. Unpack it, and import the file inside",
    b"PAR1": "is a parquet file. Convert it to JSON lines first",
    b"\xff\xfe": "is UTF-16 text. Save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text. Save it as UTF-8",
    b"\x28\xb5\x2f\xfd": "is packed with zstd. Unpack it, or pack it with gzip",
    b"SQLite format 3": "is a database. Export its records as JSON lines first",
}


class Opened(NamedTuple):
    """A file for reading, unpacked, and how far it was read."""

    file: io.BufferedReader[Any]
    done_bytes: Callable[[], int]  # of the file as it lies on the disk


@contextmanager
def open_unpacked(path: Path) -> Iterator[Opened]:
    """Open `path` for reading; what is gzip comes out unpacked, whatever its name.

    Reading raises BadRequestError where a gzip file is damaged, or unpacks to more than a file of people's words can.

    Raises:
        BadRequestError: the file cannot be opened, or it is of a kind that holds no lines.
    """
    try:
        raw = io.FileIO(path)
    except OSError as error:
        raise BadRequestError(
            f"The file {path} cannot be read: {error.strerror}. Check its name and its rights."
        ) from error
    with io.BufferedReader(raw, BUFFER_BYTES) as plain:
        head = plain.peek(16)[:16]
        for magic, sentence in _NOT_LINES.items():
            if head.startswith(magic):
                raise BadRequestError(f"The file {path} {sentence}.")
        if head.startswith(_GZIP):
            yield Opened(io.BufferedReader(_Unpacked(plain), BUFFER_BYTES), raw.tell)
        else:
            yield Opened(plain, raw.tell)


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, as long as it stays within bounds."""

    def __init__(self, packed: io.BufferedReader[Any]) -> None:
        self._packed = packed
        self._file = gzip.GzipFile(fileobj=packed)
        self._unpacked_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]  # of the many that the base allows
        try:
            data = self._file.read1(len(target))
        except EOFError as error:
            raise BadRequestError("the gzip file ends too early; it was cut off. Get it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise BadRequestError("the gzip file is damaged here; get it again") from error
        self._unpacked_bytes += len(data)
        self._check_size()
        target[: len(data)] = data
        return len(data)

    def _check_size(self) -> None:
        size = self._unpacked_bytes
        if size > UNPACKED_BYTES:
            raise BadRequestError(
                f"unpacks to more than {UNPACKED_BYTES // 1000**3} GB; split it into files below that"
            )
        if size > HARMLESS_BYTES and size > MOST_TIMES_LARGER * self._packed.tell():
            raise BadRequestError(
                f"unpacks to more than {MOST_TIMES_LARGER} times its size, which words of people do not; "
                "if it is meant, unpack it yourself and import that"
            )

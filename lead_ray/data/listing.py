"""Long lists on disk: what they take of memory does not grow with the number of images.

SQLite keeps and sorts them, in files without a name where the system has its temporary ones.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager


class Listing:
    """Lines of text of the images of each split, in the order in which they come, until it is closed.

    Raises: OSError if they do not fit the disk.
    """

    def __init__(self):
        columns = "split TEXT, ordinal INTEGER, image_id BLOB, line TEXT, PRIMARY KEY (split, ordinal)"
        self._table = _opened(f"CREATE TABLE records ({columns}) WITHOUT ROWID")
        self.counts: dict[str, int] = {}
        """Lines of each split, in the order in which splits came."""

    def add(self, records: Iterable[tuple[str, str, str]]) -> None:
        """Split, image_id and line of each."""

        def rows() -> Iterator[tuple[str, int, bytes, str]]:
            for split, image_id, line in records:
                ordinal = self.counts.get(split, 0)
                self.counts[split] = ordinal + 1
                yield split, ordinal, _bytes(image_id), line

        with _room():
            self._table.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", rows())

    def twice(self) -> tuple[str, str] | None:
        """Split and image_id of the first image that has come before in its split."""
        asked = "SELECT split, image_id FROM records GROUP BY split, image_id HAVING count(*) > 1 ORDER BY max(ordinal)"
        with _room():
            found = self._table.execute(asked).fetchone()
        return found and (found[0], _text(found[1]))

    def lines(self, split: str, start: int, end: int) -> str:
        """Lines start up to, not with, end of a split, one below the other."""
        asked = "SELECT line FROM records WHERE split = ? AND ordinal >= ? AND ordinal < ? ORDER BY ordinal"
        with _room():
            return "\n".join(line for (line,) in self._table.execute(asked, (split, start, end)))

    def close(self) -> None:
        self._table.close()


def in_order(names: Iterable[str]) -> Iterator[str]:
    """sorted(), on disk. Raises: OSError if they do not fit it."""
    with closing(_opened("CREATE TABLE names (name BLOB)")) as table, _room():
        table.executemany("INSERT INTO names VALUES (?)", ((_bytes(name),) for name in names))
        for (name,) in table.execute("SELECT name FROM names ORDER BY name"):
            yield _text(name)


def _opened(table: str) -> sqlite3.Connection:
    made = sqlite3.connect("")
    with _room():
        for how in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):  # KiB of it that stay in memory
            made.execute(f"PRAGMA {how}")
        made.execute(table)
    return made


def _bytes(name: str) -> bytes:
    """In the order of the characters, also of names that are not UTF-8 on disk."""
    return name.encode(errors="surrogatepass")


def _text(name: bytes) -> str:
    return name.decode(errors="surrogatepass")


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(
            f"the list of all images, kept in a temporary file while they are prepared: {error}. Free some space, or "
            "name a folder that has it in the environment's TMPDIR, and run the same command again"
        ) from error

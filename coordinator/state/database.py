"""Opening the SQLite file: readable by its owner alone, in WAL mode, brought to the newest schema.

Knows SQLite, Alembic and their errors. Knows no table.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from mesh.errors import MeshError, NotEnoughDisk

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 5.0  # `token create` writes while the coordinator runs

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",  # readers and one writer do not wait for each other
    "PRAGMA synchronous=FULL",  # writes are rare, and a revocation must survive a power cut
    "PRAGMA foreign_keys=ON",
)


@asynccontextmanager
async def open_database(path: Path) -> AsyncIterator[AsyncEngine]:
    """An engine on the newest schema. Raises MeshError for a file that is no database, or a newer one than we know."""
    _create_private(path)
    url = URL.create("sqlite+aiosqlite", database=str(path))  # a path may hold what a URL would split at
    engine = create_async_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine.sync_engine, "connect", _on_connect)
    try:
        with translated(path):
            async with engine.begin() as connection:
                await connection.run_sync(upgrade)
        yield engine
    finally:
        await engine.dispose()


def upgrade(connection: Connection) -> None:
    """Bring the schema to the newest revision; nothing happens if it is."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Foreign errors become ours, naming the file."""
    try:
        yield
    except CommandError as exc:
        raise MeshError(
            f"{path} was written by a newer version of llama-mesh ({exc}); upgrade, or choose another --data DIR"
        ) from exc
    except SQLAlchemyError as exc:
        cause = getattr(exc, "orig", None) or exc
        if isinstance(cause, sqlite3.Error) and cause.sqlite_errorname == "SQLITE_FULL":
            raise NotEnoughDisk(f"{path}: {cause}; make room, then run it again") from exc
        raise MeshError(f"{path}: {cause}; restore it from a backup, or choose another --data DIR") from exc


def _create_private(path: Path) -> None:
    """SQLite gives its -wal and -shm files the mode of the database."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _on_connect(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()

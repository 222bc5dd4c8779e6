"""What every part of the state stands on: one database, and writes that are one transaction each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from coordinator.state.database import translated


class Rows:
    def __init__(self, engine: AsyncEngine, path: Path) -> None:
        self._session = async_sessionmaker(engine, expire_on_commit=False)
        self._path = path

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncSession]:
        with translated(self._path):
            async with self._session.begin() as session:
                yield session

"""The tables. A change here needs a migration beside it; a test compares the two.

Times are seconds since the Unix epoch, UTC: they mean the same in every database and every zone.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Double, Integer, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class JoinTokenRow(Base):
    __tablename__ = "join_tokens"

    digest: Mapped[bytes] = mapped_column(
        LargeBinary(32), primary_key=True
    )  # SHA-256 of the secret, never the secret
    label: Mapped[str] = mapped_column(String(200))
    created: Mapped[float] = mapped_column(Double)
    expires: Mapped[float | None] = mapped_column(Double)
    revoked: Mapped[float | None] = mapped_column(Double)


class ApiKeyRow(Base):
    __tablename__ = "api_keys"

    digest: Mapped[bytes] = mapped_column(
        LargeBinary(32), primary_key=True
    )  # SHA-256 of the key, never the key
    label: Mapped[str] = mapped_column(String(200))
    created: Mapped[float] = mapped_column(Double)
    expires: Mapped[float | None] = mapped_column(Double)
    revoked: Mapped[float | None] = mapped_column(Double)
    scopes: Mapped[str] = mapped_column(String(200))  # words, a space between two
    models: Mapped[str] = mapped_column(Text)  # names, a newline between two; empty: every model
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    streams: Mapped[int | None] = mapped_column(BigInteger)
    kv_tokens: Mapped[int | None] = mapped_column(BigInteger)


class ReleaseRow(Base):
    __tablename__ = "releases"

    release_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    directory: Mapped[str] = mapped_column(Text)
    replaces_at_once: Mapped[bool] = mapped_column(Boolean)
    added: Mapped[float] = mapped_column(Double)
    removed: Mapped[float | None] = mapped_column(Double)


class LicenseAcceptanceRow(Base):
    """A node's signed word, as it came; the other columns are for finding it."""

    __tablename__ = "license_acceptances"

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)  # SHA-256 of the record
    node_id: Mapped[str] = mapped_column(String(100), index=True)
    license_id: Mapped[str] = mapped_column(String(100))
    release_id: Mapped[str] = mapped_column(String(64), index=True)
    received: Mapped[float] = mapped_column(Double)
    record: Mapped[bytes] = mapped_column(LargeBinary)  # DSSE envelope


class NodeRow(Base):
    __tablename__ = "nodes"

    node_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(20))  # the last change: joined, ready, draining, left, lost
    layers: Mapped[str] = mapped_column(String(20))  # "10:20"
    first_seen: Mapped[float] = mapped_column(Double)
    last_seen: Mapped[float] = mapped_column(Double)


class AuditRow(Base):
    __tablename__ = "audit"

    # SQLite counts only INTEGER keys up by itself.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    time: Mapped[float] = mapped_column(Double, index=True)
    event: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(100))  # a node id or a token id
    detail: Mapped[str] = mapped_column(Text)

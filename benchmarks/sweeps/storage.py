"""The database of a sweep's trials: SQLite by default, or any that SQLAlchemy supports."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from thermoopt.benchmarks.harness.room import DiskFull, disk_full, is_full

__all__ = ["GRACE", "HEARTBEAT", "StorageError", "default_storage", "masked", "open_storage", "opened"]

HEARTBEAT = 10
"""Seconds between a worker's heartbeats: lost trials are noticed soon, and the database is not kept busy."""

GRACE = 120
"""Seconds without a heartbeat after which a trial counts as lost: more than a swapping machine or a
restarting database needs."""

ANSWER = 10
"""Seconds to wait for a database's first answer."""

LOCKED = 60
"""Seconds a process waits for SQLite's lock; transactions here take milliseconds."""

CREATIONS = 3
"""Attempts to create the tables: of processes that start together, one wins and the others find them."""


class StorageError(RuntimeError):
    """A storage that cannot be used; the message names it, without its password."""


def default_storage(out: Path) -> str:
    """Return the URL of the SQLite file in a sweep's folder."""
    return f"sqlite:///{(out / 'study.db').resolve()}"


def masked(url: str) -> str:
    """Return the URL with stars for its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def open_storage(
    url: str, *, heartbeat: int = HEARTBEAT, grace: int = GRACE, answer: int = ANSWER
) -> RDBStorage:
    """Connect, and create the tables if there are none.

    On SQLite every transaction takes the write lock at its start: by default pysqlite runs a SELECT outside
    any transaction, so that two workers could both find a trial waiting and take it.

    Args:
        url: SQLAlchemy's URL.
        heartbeat, grace: seconds between a trial's heartbeats, and without one until it counts as lost.
        answer: seconds to wait for the database.

    Raises:
        StorageError: if the URL is invalid, its driver is missing, or the database does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        parts = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise StorageError(
            f"storage {url!r} is not an SQLAlchemy URL, such as sqlite:///runs/study.db or "
            "postgresql+psycopg://user@host/name"
        ) from error
    backend = parts.get_backend_name()
    if backend == "sqlite":
        waits: dict[str, Any] = {"timeout": LOCKED}
        pool: dict[str, Any] = {}
    else:
        # the name that psycopg, psycopg2, PyMySQL and mysqlclient share
        waits = {"connect_timeout": answer} if backend in ("postgresql", "mysql", "mariadb") else {}
        pool = {"pool_pre_ping": True}  # a restarted database has lost its connections
    where = f"storage {masked(url)}"
    for attempt in range(CREATIONS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = RDBStorage(
                    url,
                    engine_kwargs={"connect_args": waits, **pool},
                    heartbeat_interval=heartbeat,
                    grace_period=grace,
                )
            break
        except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise StorageError(f"{where}: its driver is missing: {error}") from error
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if attempt + 1 == CREATIONS or _unreachable(error):
                raise StorageError(f"{where} does not answer: {_reason(error)}") from error
            time.sleep(0.5)
        except RuntimeError as error:  # tables of another version of Optuna
            raise StorageError(f"{where}: {error}") from error
    if backend == "sqlite":
        _lock_first(storage.engine)
        _name_full_disks(storage.engine, Path(parts.database or "."))
    return storage


@contextlib.contextmanager
def opened(url: str, *, heartbeat: int = HEARTBEAT, grace: int = GRACE) -> Iterator[RDBStorage]:
    """Like :func:`open_storage`, but close all connections afterwards."""
    storage = open_storage(url, heartbeat=heartbeat, grace=grace)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _lock_first(engine: sqlalchemy.Engine) -> None:
    """Begin every transaction with BEGIN IMMEDIATE, on a file whose readers do not block its writer."""

    def connected(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # sqlite3 begins nothing by itself
        _write_ahead(connection)
        # a killed process loses nothing, a power cut the last second
        connection.execute("PRAGMA synchronous=NORMAL")

    engine.dispose()
    sqlalchemy.event.listen(engine, "connect", connected)
    sqlalchemy.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn on the write-ahead log, for which SQLite does not wait until others have finished writing."""
    end = time.monotonic() + LOCKED
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def _name_full_disks(engine: sqlalchemy.Engine, path: Path) -> None:
    """Report a full disk where SQLite, depending on the operation, may only report an I/O error."""

    def failed(context: sqlalchemy.engine.ExceptionContext) -> None:
        error = context.original_exception
        if isinstance(error, sqlite3.OperationalError) and (disk_full(error) or is_full(path)):
            raise DiskFull(errno.ENOSPC, f"no room for {path}") from error

    sqlalchemy.event.listen(engine, "handle_error", failed)


def _unreachable(error: Exception) -> bool:
    """Whether the connection failed, rather than the creation of tables."""
    cause = error if isinstance(error, sqlalchemy.exc.DBAPIError) else error.__cause__
    return isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.statement is None


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    origin = getattr(cause, "orig", None) or cause
    return str(origin).strip().splitlines()[0] if str(origin).strip() else type(origin).__name__

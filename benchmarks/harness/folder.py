"""The folder of a sweep, with everything needed to resume and inspect it without repeating arguments."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy

from thermoopt.benchmarks.sweeps.protocol import Protocol, ProtocolError
from thermoopt.benchmarks.sweeps.storage import default_storage, masked

__all__ = ["Folder", "FolderError"]


class FolderError(ValueError):
    """The error for an unusable folder; the message names it and what to do."""


@dataclass(frozen=True)
class Folder:
    """A sweep's folder.

    Attributes:
        out: path of the folder.
        protocol: the protocol of the sweep.
        storage: URL of the storage with its trials.
    """

    out: Path
    protocol: Protocol
    storage: str

    @staticmethod
    def check(out: Path) -> None:
        """Raise if a folder already holds a sweep.

        Raises:
            FolderError: naming the files found.
        """
        kept = [name for name in ("sweep.json", "rows.jsonl", "study.db") if (out / name).exists()]
        if kept:
            raise FolderError(
                f"{out} holds a sweep already ({', '.join(kept)}); resume with: "
                f"thermoopt bench resume --out {out}"
            )

    @classmethod
    def make(cls, out: Path, protocol: Protocol, storage: str | None) -> Folder:
        """Start a sweep's folder.

        Raises:
            FolderError: if it holds a sweep already, or cannot be written.
        """
        cls.check(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            folder = cls(out, protocol, storage or default_storage(out))
            folder._write()
        except OSError as error:
            raise FolderError(f"{out} cannot be made and written: {error.strerror}") from error
        return folder

    @classmethod
    def open(cls, out: Path, storage: str | None = None) -> Folder:
        """Open the folder of an existing sweep.

        Args:
            out: its folder.
            storage: URL to use instead of the saved one, for a storage that has moved or has a password.

        Raises:
            FolderError: if there is no sweep, its protocol was changed, or its URL was not saved.
        """
        path = out / "sweep.json"
        try:
            kept = json.loads(path.read_text())
            protocol = Protocol.of(kept["tier"], kept["content"])
            url, digest = storage or kept["storage"], kept["protocol"]
        except FileNotFoundError as error:
            raise FolderError(f"{out} holds no sweep; `thermoopt bench run` starts one") from error
        except ProtocolError as error:
            raise FolderError(
                f"{path}: its protocol is not one that this version of thermoopt can run: {error}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FolderError(f"{path} cannot be read: {error!r}") from error
        if protocol.hash != digest:
            raise FolderError(
                f"{path}: its protocol has hash {protocol.hash[:12]}, the sweep was started with "
                f"{str(digest)[:12]}: rows of both cannot stand in one table. Take another --out"
            )
        if url is None:
            raise FolderError(f"{path} keeps no password; give --storage once more")
        return cls(out, protocol, url)

    def _write(self) -> None:
        secret = sqlalchemy.make_url(self.storage).password is not None
        kept = {
            "tier": self.protocol.tier,
            "protocol": self.protocol.hash,
            "storage": None if secret else self.storage,
            "shown": masked(self.storage),
            "content": self.protocol.content,
        }
        part = self.out / f"sweep.{os.getpid()}.part"
        part.write_text(json.dumps(kept, indent=2) + "\n")
        part.replace(self.out / "sweep.json")

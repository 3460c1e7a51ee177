"""Two processes with folders of their own share the studies in a PostgreSQL that the test starts and ends."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("psycopg")
pytest.importorskip("mnist1d")
pytest.importorskip("sklearn")

import psycopg

from tests.support.bench_command import start, toml
from tests.support.sweeps import changed
from thermoopt import cli
from thermoopt.benchmarks.report.table import read_rows, read_table, rows_file
from thermoopt.benchmarks.sweeps.protocol import Protocol
from thermoopt.benchmarks.sweeps.storage import opened
from thermoopt.benchmarks.sweeps.studies import Studies

pytestmark = [pytest.mark.slow, pytest.mark.dist]


def binaries() -> Path | None:
    """Folder with ``initdb`` and ``postgres``: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


def server_user() -> str | None:
    """PostgreSQL does not run as root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    pytest.skip("root, and neither postgres nor nobody")


@pytest.fixture
def server():
    """URL of a fresh cluster on loopback, and its process."""
    folder = binaries()
    if folder is None:
        pytest.skip("initdb and postgres are not there (Debian: apt-get install postgresql)")
    user, password = server_user(), secrets.token_hex(8)
    where = Path(tempfile.mkdtemp(prefix="thermoopt-postgres-"))
    try:
        (where / "password").write_text(password)
        if user is not None:
            for path in (where, where / "password"):
                shutil.chown(path, user)
        options = ["-N", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--pwfile"]
        subprocess.run(
            [folder / "initdb", "-D", where / "data", "-U", "sweeper", *options, where / "password"],
            user=user,
            cwd=where,
            check=True,
            capture_output=True,
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with (where / "log").open("w") as log:
            process = subprocess.Popen(
                [
                    folder / "postgres",
                    "-D",
                    where / "data",
                    "-p",
                    str(port),
                    "-F",
                    "-k",
                    "",
                    "-h",
                    "127.0.0.1",
                ],
                user=user,
                cwd=where,
                stdout=log,
                stderr=log,
            )
        try:
            ready(f"host=127.0.0.1 port={port} user=sweeper password={password} dbname=postgres")
            yield f"postgresql+psycopg://sweeper:{password}@127.0.0.1:{port}/postgres", process
        finally:
            process.send_signal(signal.SIGINT)  # its fast shutdown
            process.wait(timeout=30)
    finally:
        shutil.rmtree(where)


def ready(address: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(address).close()
        except psycopg.OperationalError:
            assert time.monotonic() < end
            time.sleep(0.1)
        else:
            return


def test_two_machines_share_a_study(server, tmp_path, capsys):
    url, process = server
    table = changed(workloads={"linear": [0, 1]}, methods=["adamw linear", "autotune"], seeds=[0, 1])
    protocol = Protocol.of("t", table)
    path = toml(tmp_path, table)
    outs = [tmp_path / name for name in ("a", "b")]
    sweeps = [
        start(
            tmp_path, "run", "--protocol", path, "--tier", "t", "--out", out, "--storage", url, "--workers", 1
        )
        for out in outs
    ]
    for sweep in sweeps:
        done = sweep.end(300)
        assert done.code == 0, done
        said = done.output + done.errors
        assert "32 of 32 trials are done, 0 failed, 0 are left" in said
        assert url not in said  # it holds the password
        assert ":***@127.0.0.1" in said
    rows = [read_rows(rows_file(out), pytest.fail) for out in outs]
    keys = Counter((r["steps"], r["method"], r["seed"], r["k"]) for r in rows[0] + rows[1])
    assert keys == Counter(
        (steps, method, seed, k)
        for steps in (500, 2000)
        for method in table["methods"]
        for seed in (0, 1)
        for k in range(4)
    )
    assert min(map(len, rows)) > 3  # both had their share
    assert len(read_table(url, None, protocol.hash)) == 32
    with opened(url) as storage:
        studies = Studies(storage, protocol, url)
        trials = [t for order in studies.cells for t in studies.trials(order)]
    assert Counter(t.state.name for t in trials) == {"COMPLETE": 32}

    assert cli.main(["bench", "status", "--out", str(outs[0]), "--storage", url]) == 0
    assert "32 done, 0 running, 0 waiting, 0 failed" in capsys.readouterr().out

    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "resume", "--out", str(outs[0]), "--storage", url])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "does not answer" in said
    assert "sweeper:***@127.0.0.1" in said

"""Processes that tests start, none of which outlives its time limit.

Importing torch costs three seconds of a core. Most processes are therefore forked from a server that imported
it once for each process of pytest, and start in milliseconds with a state of their own.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch.multiprocessing as mp

ROOT = str(Path(__file__).parents[2])

PRELOAD = (
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.optim.adamw",
    "torch._dynamo",
    "thermoopt.adamw",
    "thermoopt.controllers",
    "thermoopt.observer",
    "thermoopt.scheduler",
    "thermoopt.kernels.native",
    "matplotlib.backends.backend_agg",
    "accelerate",
    "optuna.storages",
    "scipy.stats",
    "tests.support.frozen",  # the last
)
"""What the server has imported: libraries, and of ours what nearly every process loads."""


def fork_server():
    """A context of multiprocessing whose processes are forked from the server."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    return context


@contextlib.contextmanager
def forked_pools():
    """Give code that asks for spawned processes ones that are forked from the server: alike, but fast."""
    true, server = multiprocessing.get_context, fork_server()

    def get_context(method=None):
        return server if method == "spawn" else true(method)

    with mock.patch.object(multiprocessing, "get_context", get_context):
        yield


def run_processes(worker, args, count, seconds):
    """Run ``worker(rank, *args)`` in each of them, on one thread, and raise what one of them raised."""
    fork_server()
    context = mp.start_processes(worker, args=args, nprocs=count, join=False, start_method="forkserver")
    for process in context.processes:
        process.join(seconds)
    late = any(process.is_alive() for process in context.processes)
    if late:
        for process in context.processes:
            process.kill()
    assert not late, f"the processes did not end within {seconds} s"
    context.join()  # raises what a process raised


def run_python(*command, seconds=240):
    """Output and errors of Python with a script that starts further processes; none outlives it."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, errors
    return output, errors


# ------------------------------------------------------------------ scripts


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    code: int
    output: str
    errors: str


class Script:
    """A script that runs as ``python -W ... path arguments`` would, forked from the server.

    Args:
        path: of the script, or the name of a module that ``python -m`` would run.
        arguments: of the script.
        filters: warning filters, in the words of ``-W``.
        environment: variables to set beside the present ones.
        folder: its working folder.
    """

    def __init__(self, path, *arguments, filters=(), environment=None, folder=None):
        self._files = tempfile.TemporaryDirectory()
        argv, variables = [str(path), *map(str, arguments)], {**os.environ, **(environment or {})}
        args = (self._files.name, argv, list(filters), variables, folder)
        self.process = fork_server().Process(target=_script, args=args)
        self.process.start()

    @property
    def pid(self):
        """Of its process."""
        return self.process.pid

    def wait_for(self, words, seconds=120):
        """Wait until its output holds these words."""
        path, end = Path(self._files.name, "output"), time.monotonic() + seconds
        while not (path.exists() and words in path.read_text()):
            assert self.process.is_alive(), f"it ended before it said {words!r}"
            assert time.monotonic() < end, f"it has not said {words!r} within {seconds} s"
            time.sleep(0.05)

    def end(self, seconds=240):
        """Wait for its end; after that time it is killed, with all that it started, and the test fails."""
        self.process.join(seconds)
        late = self.process.is_alive()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # of a group of its own
        self.process.join()
        output, errors = (Path(self._files.name, name).read_text() for name in ("output", "errors"))
        self._files.cleanup()
        assert not late, f"the script did not end within {seconds} s\n{errors}"
        return Ended(self.process.exitcode, output, errors)


def run_script(path, *arguments, seconds=240, **options):
    """Run a :class:`Script` to its end."""
    return Script(path, *arguments, **options).end(seconds)


def run_ranks(count, path, *arguments, seconds=240):
    """Run a script on some ranks with the variables that torchrun sets; the output of the first rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    scripts = [Script(path, *arguments, environment=meet | sizes | rank) for rank in ranks]
    ended = [script.end(seconds) for script in scripts]
    assert not any(end.code for end in ended), "\n".join(end.errors for end in ended)
    return ended[0].output


def _script(files, argv, filters, environment, folder):
    """Become the script: its group, files, variables, paths and warnings; and end as Python does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # of a pytest in the background it is ignored
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(f"{files}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder or os.getcwd())
    sys.warnoptions[:] = filters  # for processes that it starts
    warnings._processoptions(filters)
    is_file = argv[0].endswith(".py")
    first = os.path.dirname(os.path.abspath(argv[0])) if is_file else os.getcwd()
    sys.path[:] = [first, *(path for path in sys.path if path not in ("", ROOT))]
    sys.argv[:] = argv
    try:
        if is_file:
            runpy.run_path(argv[0], run_name="__main__")
        else:
            runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()

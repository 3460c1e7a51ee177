"""Processes that a test starts together, that may not outstay a time limit."""

import os
import signal
import subprocess
import sys

import pytest
import torch.multiprocessing as mp


def run_processes(worker, args, count, seconds):
    """Run ``worker(rank, *args)`` in each of them, on one thread, and raise what one of them raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")
        context = mp.spawn(worker, args=args, nprocs=count, join=False)
        for process in context.processes:
            process.join(seconds)
        if any(process.is_alive() for process in context.processes):
            for process in context.processes:
                process.kill()
            pytest.fail(f"the processes did not end within {seconds} s")
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

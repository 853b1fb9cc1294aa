"""Starts processes that train together as ``torchrun`` does, but without its supervision."""

import os
import socket
import subprocess
import sys


def start(script: str, *arguments: str, processes: int = 2, stdin: bool = False) -> list[subprocess.Popen]:
    """Run ``script`` in several processes, each on one thread; with ``stdin`` they can wait for input."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def outputs(started: list[subprocess.Popen], *, timeout: float = 120) -> list[str]:
    """Return the output of each, once all have succeeded."""
    told = [process.communicate(timeout=timeout) for process in started]
    for process, (_, errors) in zip(started, told, strict=True):
        assert process.returncode == 0, errors
    return [printed for printed, _ in told]

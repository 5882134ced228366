"""Ports for servers that tests start."""

import random
import socket

# Below those that Linux gives to outgoing connections: such a port, free now, may be taken a moment later by anyone.
LOWEST, HIGHEST = 15_000, 32_000
TRIES = 1000

given = set()


def free_port():
    """A port of this machine's loopback address that is free, and was not given before."""
    for _ in range(TRIES):
        port = random.randrange(LOWEST, HIGHEST)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in given:
            given.add(port)
            return port
    raise RuntimeError(f"no free port from {LOWEST} to {HIGHEST}")

"""Python loads this before anything else in every command of the contract tests: asking any other machine ends it."""

import os
import socket
import sys
from typing import Any

EXIT_CODE = 97
HERE = ("", "localhost", "127.0.0.1", "::1", socket.gethostname())


def refuse(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host is not None and host not in HERE:
        os.write(2, f"{event}: {host} was asked for\n".encode())
        os._exit(EXIT_CODE)


sys.addaudithook(refuse)

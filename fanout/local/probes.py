"""Free ports and readiness checks for servers on this machine."""

import http.client
import socket

HOST = "127.0.0.1"
_TIMEOUT_S = 2.0


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int, address: str = HOST) -> bool:
    """True if a server could listen on that port now; port 0 is never one."""
    if not port:
        return False
    with socket.socket() as probe:
        # As servers do: a port that only remembers old connections is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def http_ok(port: int, path: str) -> bool:
    """True if GET `path` on this machine answers 200; never goes through a proxy."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def redis_ok(port: int) -> bool:
    """True if a Redis or Valkey on this machine answers PING (it does not while it loads)."""
    try:
        with socket.create_connection((HOST, port), timeout=_TIMEOUT_S) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False

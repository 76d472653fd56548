"""Messages between this process and its tokenizer processes: JSON behind its length, on a socket.

Each side waits for the other's answer, so a socket never holds more than one message. JSON, since
an answer comes out of a process that runs foreign code.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from typing import Any

from trtllm_dflash.log import printable

_LENGTH = struct.Struct("!Q")
_CHUNK = 1 << 16
_MAX_REASON = 600  # characters of an error's text


class FramingError(Exception):
    """What came is no message, or a longer one than was allowed."""


def send(connection: socket.socket, message: Any, descriptor: int | None = None) -> None:
    """Send a message, and with it an open file descriptor.

    Raises:
        OSError: if the other side has gone.
        TimeoutError: if the socket has a time limit and the other side does not read.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    frame = _LENGTH.pack(len(data)) + data
    if descriptor is not None:
        sent = socket.send_fds(connection, [frame], [descriptor])
        frame = frame[sent:]
    connection.sendall(frame)


def receive(connection: socket.socket, *, max_bytes: int, deadline: float | None = None) -> Any:
    """Return the next message.

    Args:
        connection: the socket.
        max_bytes: the longest message that is read.
        deadline: the time by `time.monotonic` at which to give up; None waits without end.

    Raises:
        EOFError: if the other side has closed its end.
        TimeoutError: at the deadline.
        FramingError: for a message that is too long, or none.
    """
    _limit(connection, deadline)
    return _rest(connection, connection.recv(_CHUNK), max_bytes, deadline)


def receive_with_descriptor(
    connection: socket.socket, *, max_bytes: int
) -> tuple[Any, int | None]:
    """Return the next message and the file descriptor that came with it; errors as `receive`."""
    data, descriptors, _, _ = socket.recv_fds(connection, _CHUNK, 1)
    message = _rest(connection, data, max_bytes, None)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return message, descriptors[0] if descriptors else None


def _rest(
    connection: socket.socket, begun: bytes, max_bytes: int, deadline: float | None
) -> Any:
    data = bytearray(begun)
    while len(data) < _LENGTH.size:
        _receive_more(connection, data, deadline)
    (length,) = _LENGTH.unpack_from(data)
    if length > max_bytes:
        raise FramingError(f"a message of {length} bytes, and at most {max_bytes} are read")
    while len(data) < _LENGTH.size + length:
        _receive_more(connection, data, deadline)
    try:
        return json.loads(data[_LENGTH.size :])
    except (ValueError, RecursionError) as error:
        raise FramingError(f"a message that is no JSON ({error})") from error


def _receive_more(connection: socket.socket, data: bytearray, deadline: float | None) -> None:
    if not data:
        raise EOFError
    _limit(connection, deadline)
    more = connection.recv(1 << 20)
    if not more:
        raise EOFError
    data += more


def _limit(connection: socket.socket, deadline: float | None) -> None:
    if deadline is not None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connection.settimeout(remaining)


def reason(error: BaseException) -> str:
    """Return an error's text, with its type where that says more; see `one_line`."""
    try:
        text = one_line(str(error))
    except Exception:  # noqa: BLE001 - foreign code has written __str__ too
        text = ""
    name = type(error).__name__
    if name in ("Exception", "TemplateError", "RefusalError", "ValueError"):
        return text or name
    return f"{name}: {text}" if text else name


def one_line(text: str) -> str:
    """Return a foreign text for a terminal: a bounded line without control characters."""
    line = printable(" ".join(text[: 4 * _MAX_REASON].split()))
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}…"

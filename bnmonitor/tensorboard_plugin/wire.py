"""Requests and answers: checked parameters in, JSON or binary slices out. ``http_api.md`` describes both."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from tensorboard.backend import http_util
from werkzeug import wrappers
from werkzeug.datastructures import MultiDict

from bnmonitor.history.source import Array
from bnmonitor.tensorboard_plugin.cache import Cache

logger = logging.getLogger(__name__)

BINARY = "application/octet-stream"
LONGEST = 4096
"""The most characters of a parameter."""

MOST_COLUMNS = 4096
"""The most columns of a slice, which is more than most screens have pixels."""

App = Callable[..., Any]


class BadRequestError(Exception):
    """A parameter is missing or cannot be used."""


class NotThereError(Exception):
    """The requested run, layer or file does not exist."""


class Query:
    """The parameters of a request, checked.

    Args:
        given: By name.
    """

    def __init__(self, given: MultiDict[str, str]) -> None:
        self._given = given

    def text(self, name: str, default: str | None = None) -> str:
        """Return a parameter as it is; without a default it must be there.

        Raises:
            BadRequestError: It is missing or too long.
        """
        value = self._given.get(name, default)
        if value is None:
            raise BadRequestError(f"the parameter {name!r} is missing")
        if len(value) > LONGEST:
            raise BadRequestError(f"the parameter {name!r} has {len(value)} characters, at most {LONGEST} are accepted")
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """Return all parameters of a name.

        Raises:
            BadRequestError: There are none, or more than ``most``.
        """
        found = self._given.getlist(name)
        if not 0 < len(found) <= most:
            raise BadRequestError(f"the parameter {name!r} must be there 1 to {most} times, but is {len(found)} times")
        return found

    def number(self, name: str, least: int, most: int, default: int) -> int:
        """Return a parameter as an int.

        Raises:
            BadRequestError: It is not an int from ``least`` to ``most``.
        """
        text = self.text(name, str(default))
        try:
            value = int(text) if len(text) < 20 else most + 1
        except ValueError:
            value = most + 1
        if not least <= value <= most:
            raise BadRequestError(f"the parameter {name!r} must be an int from {least} to {most}")
        return value


Handle = Callable[[wrappers.Request, Query], tuple[Any, str]]
"""Answers a request with content and its type."""


def answer(handle: Handle, *, packed: Cache | None = None) -> App:
    """Make a web app from a function that returns content and its type; an error is one sentence of plain text.

    Args:
        handle: The function.
        packed: Where packed answers are kept: one that comes out as before is not packed again.
    """

    @wrappers.Request.application
    def app(request: wrappers.Request) -> wrappers.Response:
        _send_at_once(request)
        content, kind, code = attempt(handle, request, Query(request.args))
        if kind != BINARY:
            return _respond(request, content, kind, code)
        pack = partial(gzip.compress, content, 1)
        small = packed.get(request.query_string, content, pack) if packed is not None else pack()
        return _respond(request, small, kind, code, content_encoding="gzip")

    return app


def file(text: str, kind: str, *, seconds: int) -> App:
    """Make a web app that sends a text, which is packed once.

    Args:
        text: The text.
        kind: Its type.
        seconds: How long a browser may keep it.
    """
    packed = gzip.compress(text.encode(), mtime=0)

    @wrappers.Request.application
    def app(request: wrappers.Request) -> wrappers.Response:
        _send_at_once(request)
        return _respond(request, packed, kind, 200, expires=seconds, content_encoding="gzip")

    return app


def _send_at_once(request: wrappers.Request) -> None:
    """Have the connection send what is written.

    TensorBoard's server writes the head and the body of an answer apart, and the body would wait up to 40 ms for the
    browser to acknowledge the head.
    """
    connection: Any = request.environ.get("werkzeug.socket")
    with suppress(AttributeError, OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def attempt(handle: Handle, request: wrappers.Request, query: Query) -> tuple[Any, str, int]:
    """Return content, its type and its status; an error is one sentence of plain text."""
    try:
        return *handle(request, query), 200
    except BadRequestError as error:
        return str(error), "text/plain", 400
    except NotThereError as error:
        return str(error), "text/plain", 404
    except Exception as error:
        logger.warning("the BatchNorm tab could not answer %s", request.path, exc_info=True)
        return f"bnmonitor could not answer: {type(error).__name__}: {error}", "text/plain", 500


def _respond(request: wrappers.Request, content: Any, kind: str, code: int, **more: Any) -> wrappers.Response:
    response: wrappers.Response = http_util.Respond(request, content, kind, code=code, **more)
    return response


def as_json(thing: object) -> tuple[str, str]:
    """Return plain types as JSON."""
    return json.dumps(thing, allow_nan=False, separators=(",", ":")), "application/json"


def as_binary(header: Mapping[str, Any], values: Array) -> tuple[bytes, str]:
    """Return an array with a description: a uint32 length, as many bytes of JSON, then float32, all little endian.

    The JSON is padded so that the floats can be viewed where they lie.
    """
    text = json.dumps({**header, "shape": values.shape}, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<I", len(text)) + text + np.ascontiguousarray(values, "<f4").tobytes(), BINARY


def as_bundle(*parts: str | bytes) -> tuple[bytes, str]:
    """Return several answers as one: of each a uint32 length, little endian, and as many bytes, a multiple of 4."""
    found = []
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        data += b" " * (-len(data) % 4)
        found.append(struct.pack("<I", len(data)) + data)
    return b"".join(found), BINARY

"""Requests and answers: checked parameters in, JSON or binary slices out. ``http_api.md`` describes both."""

from __future__ import annotations

import gzip
import json
import logging
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tensorboard.backend import http_util
from werkzeug import wrappers

from bnmonitor.history.source import Array

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

    def __init__(self, given: Mapping[str, str]) -> None:
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


def answer(handle: Callable[[wrappers.Request, Query], tuple[Any, str]], *, seconds: int = 0) -> App:
    """Make a web app from a function that returns content and its type; an error is one sentence of plain text.

    Args:
        handle: The function.
        seconds: How long a browser may keep the content.
    """

    @wrappers.Request.application
    def app(request: wrappers.Request) -> wrappers.Response:
        try:
            content, kind = handle(request, Query(request.args))
        except BadRequestError as error:
            return _respond(request, str(error), "text/plain", 400)
        except NotThereError as error:
            return _respond(request, str(error), "text/plain", 404)
        except Exception as error:
            logger.warning("the BatchNorm tab could not answer %s", request.path, exc_info=True)
            return _respond(request, f"bnmonitor could not answer: {type(error).__name__}: {error}", "text/plain", 500)
        if kind == BINARY:
            packed = gzip.compress(content, 1)
            return _respond(request, packed, kind, 200, content_encoding="gzip")
        return _respond(request, content, kind, 200, expires=seconds)

    return app


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

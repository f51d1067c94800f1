from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What the trials alert of is looked at, not read."""
    caplog.set_level(logging.CRITICAL, logger="bnmonitor")

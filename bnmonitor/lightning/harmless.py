"""What keeps an error in the adapter itself away from the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from bnmonitor.monitor import AlertError, BatchNormWarning

Hook = TypeVar("Hook", bound=Callable[..., Any])


class RefusedError(Exception):
    """Settings do not fit the model: the user is to see the error within.

    Attributes:
        error: What the monitor's constructor raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def harmless(hook: Hook) -> Hook:
    """Let a hook of the callback end the watch, and not the fit, if it raises.

    In a training of several processes the error is raised: the others would wait for this one where they all act
    together.
    """

    @wraps(hook)
    def shielded(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if self.gave_up:
            return None
        try:
            return hook(self, trainer, *args, **kwargs)
        except (AlertError, BatchNormWarning):
            raise
        except RefusedError as refused:
            raise refused.error from None
        except Exception as error:
            if getattr(trainer, "world_size", 1) > 1:
                raise
            self.give_up(error)

    return shielded  # type: ignore[return-value]

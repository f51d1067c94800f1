"""What keeps an error in an adapter itself away from the trainer that it is attached to."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from bnmonitor.monitor.actions import AlertError, BatchNormWarning

Hook = TypeVar("Hook", bound=Callable[..., Any])


class RefusedError(Exception):
    """Settings do not fit the model: the user is to see the error within.

    Attributes:
        error: What the monitor's constructor raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def make_harmless(
    watch: Callable[[Any], Any] = lambda adapter: adapter, raises: Callable[..., bool] = lambda *args: False
) -> Callable[[Hook], Hook]:
    """Return a decorator that lets a hook of an adapter end the watch, and not the training, if it raises.

    Args:
        watch: Gets the adapter, and returns what has ``gave_up`` and ``give_up(error)``.
        raises: Gets the hook's arguments, and returns whether an error is to reach the trainer.
    """

    def harmless(hook: Hook) -> Hook:
        @wraps(hook)
        def shielded(self: Any, *args: Any, **kwargs: Any) -> Any:
            watching = watch(self)
            if watching.gave_up:
                return None
            try:
                return hook(self, *args, **kwargs)
            except (AlertError, BatchNormWarning):
                raise
            except RefusedError as refused:
                raise refused.error from None
            except Exception as error:
                if raises(*args):
                    raise
                watching.give_up(error)

        return shielded  # type: ignore[return-value]

    return harmless

"""What a gate refuses."""


class GateError(ValueError):
    """A baseline or a configuration cannot be used; the message is one sentence."""

"""What Python runs when it starts with this directory on its path; it leaves no trace."""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _here]
sys.modules.pop("sitecustomize", None)

if os.environ.get("BNMONITOR", "0") not in ("", "0"):
    try:
        from bnmonitor.scripts.arrival import when_imported

        def _torch_arrived() -> None:
            from bnmonitor.scripts.finder import begin

            begin()

        when_imported("torch", _torch_arrived)
    except Exception as error:
        sys.stderr.write(f"bnmonitor does not watch: {type(error).__name__}: {error}\n")

# The one that this has hidden, if there is one; else Python goes on as if it had found none, for it asks for that name.
__import__("sitecustomize")

"""What Python runs when it starts with this directory on its path; it leaves no trace."""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _here]
sys.modules.pop("sitecustomize", None)

if os.environ.get("BNMONITOR", "0") not in ("", "0"):
    from importlib.util import module_from_spec, spec_from_file_location

    def _torch_arrived() -> None:
        try:
            from bnmonitor.scripts.finder import begin

            begin()
        except Exception as error:
            sys.stderr.write(f"bnmonitor does not watch: {type(error).__name__}: {error}\n")

    # By its path: pytest warns of plugins that are imported before it, and bnmonitor is one.
    _spec = spec_from_file_location("_bnmonitor_arrival", os.path.join(os.path.dirname(_here), "arrival.py"))
    if _spec is not None and _spec.loader is not None:
        _arrival = module_from_spec(_spec)
        _spec.loader.exec_module(_arrival)
        _arrival.when_imported("torch", _torch_arrived)

# The one that this has hidden, if there is one; else Python goes on as if it had found none, for it asks for that name.
__import__("sitecustomize")

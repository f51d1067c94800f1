"""Checkpoints in several files, with a JSON index that says which tensor lies where."""

from __future__ import annotations

import json
from pathlib import Path

from bnmonitor.audit.unreadable import UnreadableError, first_line


def shards(path: Path) -> dict[Path, list[str]]:
    """Return the files that an index names, in its directory, and the tensors in each.

    Raises:
        UnreadableError: It is no index, names a file outside its directory, or one that is missing.
    """
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableError(f"{path} is not a valid index of a checkpoint: {first_line(error)}") from None
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UnreadableError(f"{path} is not the index of a checkpoint: it has no weight_map of names to files")
    found: dict[Path, list[str]] = {}
    for tensor, name in places.items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise UnreadableError(f"{path} is refused: it names {name[:80]!r}, which is not a file beside it")
        found.setdefault(path.parent / name, []).append(tensor)
    missing = [shard.name for shard in found if not shard.is_file()]
    if missing:
        raise UnreadableError(f"{path} names {len(found)} files, of which {missing[0]!r} is missing")
    return found

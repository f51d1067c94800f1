"""The commands that judge checkpoints and models."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnmonitor._text import CHECKPOINTS, printable
from bnmonitor.cli.answers import FINE, fail, verdict
from bnmonitor.cli.gates import audit_target, gate
from bnmonitor.display import say, show

if TYPE_CHECKING:
    from torch import Tensor

    from bnmonitor.audit import Audited


def audit(parsed: argparse.Namespace) -> int:
    """Judge checkpoints and models."""
    from bnmonitor.audit import Audited, Question, UnreadableError, audit_line, audit_table, checkpoint_files, examine
    from bnmonitor.gates import Target

    paths = []
    for what in parsed.what:
        there = [str(path) for path in checkpoint_files(Path(what))] if Path(what).is_dir() else [what]
        if not there:
            return fail(f"no checkpoint in {what}: files that end with {', '.join(CHECKPOINTS)}")
        paths += there
    several = len(paths) > 1 or any(Path(what).is_dir() for what in parsed.what)
    asked = Question(
        shape=parsed.input,
        model=parsed.model,
        reference=parsed.reference,
        images=parsed.images,
        pixels=parsed.pixels,
    )
    audits: list[Audited] = []
    targets, bare = [], []
    for path in paths:
        file = Path(path) if Path(path).exists() else None
        try:
            found = examine(path, asked)
        except UnreadableError as error:
            fail(str(error))
            targets.append(Target(name=path, path=file, error=str(error)))
            continue
        if not found and not several:
            return fail(f"{path} {_nothing_to_judge(path)}")
        bare += [] if found else [path]
        for name, one in found:
            audits.append(Audited(name=name, path=file, audit=one))
            targets.append(audit_target(name, one, path))
    if parsed.json:
        plain = [{"name": each.name, **each.audit.to_dict()} for each in audits]
        print(json.dumps({"schema": 1, "audits": plain}, indent=2, allow_nan=False))
    elif several:
        for each in audits:
            say(audit_line(each.audit, each.name))
        for path in bare:
            say(f"{printable(path)}: {_nothing_to_judge(path)}")
    else:
        for each in audits:
            show(audit_table(each.audit, each.name, rows=parsed.rows))
    if audits and (code := _handed_on(parsed, audits)):
        return code
    return gate(parsed, targets)


def _nothing_to_judge(path: str) -> str:
    from bnmonitor.audit import is_shipped

    if is_shipped(path):
        return (
            "holds no normalization layer, so that nothing is left to judge: if the model had some, the export folded "
            "them into the layers before; audit the checkpoint that it was exported from"
        )
    return "holds no normalization layer with running statistics"


def _handed_on(parsed: argparse.Namespace, audits: Sequence[Audited]) -> int:
    """Write the card and the badge that are asked for; return an exit code if that fails."""
    from bnmonitor.audit import badge, card

    for file, write in ((parsed.card, card), (parsed.badge, badge)):
        if file is not None:
            try:
                file.write_text(write(audits), encoding="utf-8")
            except OSError as error:
                return fail(f"cannot write {file}: {error.strerror or error}")
    return FINE


def drift(parsed: argparse.Namespace) -> int:
    """Compare two checkpoints."""
    from bnmonitor.audit import UnreadableError, drift_table, read_checkpoint
    from bnmonitor.audit import drift as drift_of

    pair = []
    for path in parsed.runs:
        try:
            models = read_checkpoint(path)
        except UnreadableError as error:
            return fail(str(error))
        if not models:
            return fail(f"{path} holds no normalization layer with running statistics")
        pair.append(next(iter(models.values())))
    found = drift_of(*pair)
    if parsed.json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        show(drift_table(found, rows=parsed.rows))
    return verdict(parsed, found.came)


def structure(parsed: argparse.Namespace) -> int:
    """Show how the layers of a model are connected."""
    from bnmonitor.audit import UnreadableError, forward, locate
    from bnmonitor.layers import discover

    try:
        found = locate(parsed.what)
    except UnreadableError as error:
        return fail(str(error))
    if not found or not found[0].real:
        return fail(f"{parsed.what} is a checkpoint, which does not say how layers are connected: give module:factory")
    model = found[0].model
    if not len(discover({"": model}).table):
        return fail(f"{parsed.what} has no BatchNorm layer")
    monitor, why = forward(model, _example(parsed.input), select=())
    if monitor is None:
        return fail(f"{parsed.what} {why}")
    say(str(monitor.structure()))
    return FINE


def _example(shape: tuple[int, ...] | None) -> Tensor | None:
    import torch

    return None if shape is None else torch.randn(*shape)

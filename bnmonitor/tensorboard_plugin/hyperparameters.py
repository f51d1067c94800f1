"""The hyperparameters of runs, as loggers write them for TensorBoard's HPARAMS tab."""

from __future__ import annotations

from typing import Any

_PLUGIN = "hparams"
_START = "_hparams_/session_start_info"
_KINDS = ("bool_value", "number_value", "string_value")
_MOST = 100


def hyperparameters(provider: Any, context: Any, experiment: str) -> dict[str, dict[str, Any]]:
    """Return the hyperparameters of each run that has some, by the run's name.

    Args:
        provider: TensorBoard's data provider.
        context: The context of the request.
        experiment: The experiment of the request.
    """
    listed = provider.list_tensors(context, experiment_id=experiment, plugin_name=_PLUGIN)
    return {run: found for run, tags in listed.items() if _START in tags and (found := _read(tags[_START]))}


def of_run(every: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Return those of a run, or of the one directory below it that has some, as ``add_hparams`` makes one."""
    below = [found for run, found in every.items() if run.startswith("" if name == "." else f"{name}/")]
    return every.get(name) or (below[0] if len(below) == 1 else {})


def _read(tag: Any) -> dict[str, Any]:
    from tensorboard.plugins.hparams import metadata

    try:
        start = metadata.parse_session_start_info_plugin_data(tag.plugin_content)
    except Exception:  # what another program wrote
        return {}
    kinds = [(name, value, value.WhichOneof("kind")) for name, value in sorted(start.hparams.items())]
    found = {name: getattr(value, kind) for name, value, kind in kinds if kind in _KINDS}
    return dict(list(found.items())[:_MOST])

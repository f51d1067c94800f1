"""The server's side of the BatchNorm tab: reads the history through TensorBoard's data provider, and serves slices.

``http_api.md`` describes each route: its parameters, its answer and its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

import numpy as np
from tensorboard import plugin_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers
from werkzeug.datastructures import MultiDict

from bnmonitor import viewer
from bnmonitor.history import black_boxes as boxes
from bnmonitor.history import statistics as catalogue
from bnmonitor.history import thin
from bnmonitor.history.run import Channels, Frames, History, Run
from bnmonitor.history.schema import ALERT, CHANNELS, COURSE, EVERY, FACTS, FRAME, INCIDENT, KEPT, PLUGIN
from bnmonitor.history.source import Array, Provider
from bnmonitor.tensorboard_plugin.ahead import Listed, ListedAhead
from bnmonitor.tensorboard_plugin.cache import Cache
from bnmonitor.tensorboard_plugin.channels import PERCENTILES, ChannelReader, Detail
from bnmonitor.tensorboard_plugin.files import box_files, flight_folder
from bnmonitor.tensorboard_plugin.gradient_norm import NAME, gradient_norm
from bnmonitor.tensorboard_plugin.hyperparameters import hyperparameters
from bnmonitor.tensorboard_plugin.slices import COLUMNS, LATEST, WHOLE, columns, percentile_bins, span
from bnmonitor.tensorboard_plugin.table import rows
from bnmonitor.tensorboard_plugin.wire import (
    MOST_COLUMNS,
    BadRequestError,
    NotThereError,
    Query,
    answer,
    as_binary,
    as_bundle,
    as_json,
    attempt,
    file,
)

_TYPES = {".js": "text/javascript", ".css": "text/css"}
_DAY = 24 * 60 * 60
_HISTORY = "bnmonitor.history"
"""Key of a request's history: its runs are listed once for each request."""
_ROW = "row of the table"
MOST_ROWS = 500
"""The most rows of the table of runs in one answer."""

MOST_ASKED = 64
"""The most slices in one answer."""

MOST_PACKED = 1 << 25
"""Bytes of the first answers that are kept as they were sent."""

Answer = tuple[Any, str]


class BatchNormPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Serves the tab.

    Args:
        context: TensorBoard's plugin context.
    """

    plugin_name = PLUGIN

    def __init__(self, context: Any) -> None:
        self._context = context
        self._cache = Cache()
        self._ahead = ListedAhead(lambda: self._provider(plugin_util.context({}), "").runs())
        self._slices = {
            "slice": self._slice,
            "course": self._course,
            "layer": self._layer,
            "channels": self._channels,
            "bands": self._bands,
            "at": self._at,
            "channel": self._channel,
            "box": self._box,
        }

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return the routes: one for each file of the page, and one for each kind of data."""
        data = {
            "/several": self._several,
            "/runs": self._runs,
            "/table": self._table,
            "/manual": self._manual,
            "/run": self._run,
            **{f"/{name}": handle for name, handle in self._slices.items()},
        }
        # No path is made of what was asked for. Other texts have another address, so that a browser may keep these.
        files = {
            f"/{viewer.version()}/{name}": file(text, _TYPES[Path(name).suffix], seconds=_DAY)
            for name, text in viewer.files().items()
        }
        first = answer(self._first, packed=Cache(MOST_PACKED))
        return {**files, "/first": first, **{route: answer(handle) for route, handle in data.items()}}

    def is_active(self) -> bool:
        """Return whether to show the tab: False, as TensorBoard itself shows it once there is data."""
        return False

    def frontend_metadata(self) -> Any:
        """Return how the page is loaded.

        TensorBoard asks for it when it sends the frame of the tab, a moment before the tab asks for its first answer,
        so that the runs are listed meanwhile.
        """
        self._ahead.start()
        return base_plugin.FrontendMetadata(es_module_path=f"/{viewer.version()}/index.js", tab_name="BatchNorm")

    # -- answers -------------------------------------------------------------------------------------------------------

    def _first(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer all that the page draws at first: ``/runs``, and ``/run``, ``/slice`` and ``/course`` of a run."""
        experiment = self._experiment(request)
        listed = self._ahead.take() if not experiment else None
        source = self._provider(plugin_util.context(request.environ), experiment, listed)
        request.environ[_HISTORY] = History(source)
        listed_runs = self._listed(request)
        index, _ = self._index(listed_runs)
        runs = {run["name"]: run["wall"] for run in listed_runs}
        if not runs:
            return as_bundle(index)
        asked = query.text("run", "")
        name = asked if asked in runs else min(runs, key=lambda run: (-runs[run], run))
        statistic = query.text("statistic", "")
        known = statistic if statistic in catalogue.BY_NAME else "health"
        bins = str(min(MOST_COLUMNS, query.number("bins", 1, LATEST, COLUMNS)))
        of = Query(MultiDict({"run": name, "statistic": known, "bins": bins}))
        return as_bundle(index, *(handle(request, of)[0] for handle in (self._run, self._slice, self._course)))

    def _several(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer several slices at once: the status of each, and then each."""
        asked = [each.partition("?") for each in query.texts("ask", MOST_ASKED)]
        if unknown := [route for route, _, _ in asked if route not in self._slices]:
            raise BadRequestError(f"{unknown[0]!r} is not a route that answers a slice")
        found = [attempt(self._slices[route], request, Query(MultiDict(parse_qsl(words)))) for route, _, words in asked]
        states, _ = as_json([code for _, _, code in found])
        return as_bundle(states, *(content for content, _, _ in found))

    def _runs(self, request: wrappers.Request, query: Query) -> Answer:
        return self._index(self._listed(request))

    def _listed(self, request: wrappers.Request) -> list[dict[str, Any]]:
        """The runs, each with what shows whether it has grown."""
        runs = []
        for name, run in self._history(request).all().items():
            schemas = run.schemas
            ends = [tag.last for _, tag in run.state(FRAME)]
            last = max((int(step) for step, _ in ends), default=0)
            wall = max((_time(when) for _, when in ends), default=0.0)
            layers = max((len(schema.layers) for schema in schemas), default=0)
            runs.append({"name": name, "layers": layers, "last": last, "wall": wall})
        return runs

    @staticmethod
    def _index(runs: list[dict[str, Any]]) -> Answer:
        return as_json({"runs": runs, **_statistics(), "columns": MOST_COLUMNS})

    def _table(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer a part of the table of runs, in the order of their names: reading hundreds takes a while."""
        provider, context = self._context.data_provider, plugin_util.context(request.environ)
        settings = hyperparameters(provider, context, self._experiment(request))
        every = list(self._history(request).all().values())
        first, most = query.number("first", 0, LATEST, 0), query.number("most", 1, MOST_ROWS, MOST_ROWS)
        experiment, history = self._experiment(request), self._history(request)
        found = rows(
            every[first : first + most],
            cast(Provider, history.source),
            settings,
            known=lambda run: self._cache.holds((experiment, run.name, EVERY, _ROW), run.state(EVERY)),
            keep=lambda run, make: self._kept(request, run, EVERY, make, _ROW),
        )
        return as_json({"runs": found, "of": len(every)})

    def _manual(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer the manual's page of a rule or a cause."""
        found = viewer.manual_page(query.text("name"))
        if found is None:
            raise NotThereError("the manual has no page of that name")
        return as_json(found)

    def _run(self, request: wrappers.Request, query: Query) -> Answer:
        run = self._find(request, query)
        frames = self._frames(request, run)
        facts = self._kept(request, run, FACTS, lambda: run.facts)
        detailed = run.detailed | self._reader(request, run).layers
        alerts = self._kept(request, run, ALERT, lambda: run.alerts)
        incidents = self._kept(request, run, EVERY, lambda: run.incidents, INCIDENT)
        return as_json(
            {
                "name": run.name,
                "layers": [
                    {"name": name, "channels": channels, **facts.get(name, {}), "detailed": name in detailed}
                    for name, channels in zip(frames.layers, frames.channels, strict=True)
                ],
                "metrics": frames.metrics,
                "frames": len(frames),
                "steps": [int(frames.steps[0]), int(frames.steps[-1])] if len(frames) else [0, 0],
                "walls": [_time(frames.wall_times[0]), _time(frames.wall_times[-1])] if len(frames) else [0, 0],
                "alerts": alerts,
                "incidents": [incident.to_dict() for incident in incidents],
                "boxes": _described(box_files(self._context, run.name)),
            }
        )

    def _slice(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer a statistic of all layers over a range of steps: ``[layers, columns]``."""
        run, metric = self._find(request, query), query.text("statistic")
        frames = self._frames(request, run)
        logarithmic = catalogue.logarithmic(metric, catalogue.LAYER)
        values = frames.of(metric)
        ends = self._kept(
            request, run, EVERY, lambda: thin.extent(values, logarithmic=logarithmic), f"extent of {metric}"
        )  # of the whole run, so that zooming changes no color

        def thinned() -> Answer:
            return columns(frames.steps, values, query, logarithmic, {"extent": ends}, worst=metric == "health")

        if span(query) != WHOLE:
            return thinned()
        bins = query.number("bins", 1, MOST_COLUMNS, COLUMNS)
        # The whole course of a statistic is asked for again whenever the tab is opened.
        whole: Answer = self._kept(request, run, EVERY, thinned, (metric, bins))
        return whole

    def _course(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer the course of a training: ``[statistics, columns]``."""
        run = self._find(request, query)
        frames = self._frames(request, run)
        course = self._kept(request, run, EVERY, lambda: run.course_at(frames), COURSE)
        names, values = course.table()
        norm = self._gradient_norm(request, run, course.steps)
        if norm is not None:
            names, values = (*names, NAME), np.vstack([values, norm.astype(np.float32)])
        return columns(course.steps, values, query, True, {"statistics": names})

    def _layer(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer every statistic of one layer: ``[statistics, columns]``."""
        run, layer = self._find(request, query), query.text("layer")
        frames = self._frames(request, run)
        if layer not in frames.layers:
            raise NotThereError("this run does not have a layer of that name")
        values = frames.values[:, frames.layers.index(layer)]
        return columns(frames.steps, values, query, False, {"statistics": frames.metrics})

    def _channels(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer a statistic of a layer's channels: ``[channels, columns]``."""
        run, layer, statistic = self._find(request, query), query.text("layer"), query.text("statistic")
        detail = _there(self._reader(request, run).statistic(layer, statistic))
        logarithmic = catalogue.logarithmic(statistic, catalogue.CHANNEL)
        ends = thin.extent(detail.extreme, logarithmic=logarithmic)
        return columns(detail.steps, detail.extreme, query, logarithmic, {"extent": ends})

    def _bands(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer percentiles of a statistic over a layer's channels: ``[percentiles, columns]``."""
        run, layer, statistic = self._find(request, query), query.text("layer"), query.text("statistic")
        detail, bands = _there(self._reader(request, run).bands(layer, statistic))
        return columns(detail.steps, bands, query, False, {"percentiles": PERCENTILES}, pool=percentile_bins)

    def _at(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer every statistic of every channel of a layer at a step: ``[statistics * channels, 1]``."""
        run, layer = self._find(request, query), query.text("layer")
        step = query.number("step", -LATEST, LATEST, LATEST)
        names, values, first, last = _there(self._reader(request, run).at(layer, step))
        header = {"ends": [last], "before": first - 1, "frames": 1, "statistics": names, "channels": values.shape[1]}
        return as_binary(header, values.reshape(-1, 1))

    def _channel(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer every statistic of one channel: ``[statistics, columns]``."""
        run, layer = self._find(request, query), query.text("layer")
        reader = self._reader(request, run)
        found = {s.name: detail for s in catalogue.CHANNEL if (detail := reader.statistic(layer, s.name)) is not None}
        # What the event files add to a flight record is known at fewer steps.
        most: Detail = _there(max(found.values(), key=lambda detail: len(detail.steps), default=None))
        names = [name for name, detail in found.items() if np.array_equal(detail.steps, most.steps)]
        channel = query.number("channel", 0, len(most.mean) - 1, 0)
        table = np.array([found[name].extreme[channel] for name in names])
        return columns(most.steps, table, query, False, {"statistics": names})

    def _box(self, request: wrappers.Request, query: Query) -> Answer:
        """Answer a statistic of one layer in a black box: ``[channels, steps]``, every step of it."""
        run, name = self._find(request, query), query.text("file")
        layer, statistic = query.text("layer"), query.text("statistic", "batch_var")
        files = box_files(self._context, run.name)
        if name not in files:
            raise NotThereError("this run does not have a black box of that name")
        try:
            box = boxes.load(files[name], (statistic,))
            values = boxes.of_layer(box, layer, statistic)
        except (OSError, ValueError, IndexError, TypeError) as error:
            raise NotThereError(f"the black box has no such layer or statistic, or cannot be read: {error}") from None
        ends = thin.extent(values, logarithmic=catalogue.logarithmic(statistic, catalogue.CHANNEL))
        steps = np.asarray(box["steps"])
        return columns(steps, values, query, False, {"extent": ends, "layers": box["layers"]})

    # -- reading ------------------------------------------------------------------------------------------------------

    def _provider(self, context: Any, experiment: str, listed: Listed | None = None) -> Provider:
        return Provider(self._context.data_provider, context, experiment, KEPT, listed)

    def _history(self, request: wrappers.Request) -> History:
        found = request.environ.get(_HISTORY)
        if found is None:
            context = plugin_util.context(request.environ)
            found = History(self._provider(context, self._experiment(request)))
            request.environ[_HISTORY] = found
        return cast(History, found)

    def _experiment(self, request: wrappers.Request) -> str:
        found: str = plugin_util.experiment_id(request.environ)
        return found

    def _find(self, request: wrappers.Request, query: Query) -> Run:
        try:
            return self._history(request).run(query.text("run"))
        except KeyError as error:
            raise NotThereError(str(error.args[0])) from None

    def _frames(self, request: wrappers.Request, run: Run) -> Frames:
        frames: Frames = self._kept(request, run, EVERY, lambda: run.frames)
        return frames

    def _reader(self, request: wrappers.Request, run: Run) -> ChannelReader:
        def events(layer: str) -> Channels | None:
            found: Channels | None = self._kept(request, run, CHANNELS, lambda: run.channels(layer), layer)
            return found

        place = (self._experiment(request), run.name)
        folder = flight_folder(self._context, run.name)
        return ChannelReader(folder, events, lambda key, state, make: self._cache.get((*place, key), state, make))

    def _gradient_norm(self, request: wrappers.Request, run: Run, steps: Array) -> Array | None:
        experiment = self._experiment(request)

        def keep(state: Hashable, make: Callable[[], Any]) -> Any:
            return self._cache.get((experiment, run.name, NAME), state, make)

        context = plugin_util.context(request.environ)
        return gradient_norm(self._context.data_provider, context, experiment, run.name, steps, keep)

    def _kept(
        self, request: wrappers.Request, run: Run, prefix: str, read: Callable[[], Any], more: Hashable = ""
    ) -> Any:
        """Return a cached value, read again if something was added to its tags."""
        key = (self._experiment(request), run.name, prefix, more)
        return self._cache.get(key, run.state(prefix), read)


@cache
def _statistics() -> dict[str, Any]:
    kinds = {"statistics": catalogue.LAYER, "channelStatistics": catalogue.CHANNEL}
    return {name: [statistic.to_dict() for statistic in of] for name, of in kinds.items()}


def _time(seconds: float) -> float:
    """Return a time that JSON can hold; 0 for what a damaged file may say."""
    return float(seconds) if np.isfinite(seconds) else 0.0


def _there(found: Any) -> Any:
    if found is None:
        raise NotThereError("no channels of that layer were written yet")
    return found


def _described(files: dict[str, Path]) -> list[dict[str, Any]]:
    found = []
    for name, path in files.items():
        try:
            alert = boxes.about(path)["alert"]
            found.append({"file": name, **{key: alert.get(key) for key in ("code", "layer", "first_step")}})
        except (AttributeError, OSError, ValueError):
            continue
    return found

"""Running statistics as a layer keeps them: replaced as a whole, under a lock, and counted. Knows no norm."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from threading import Lock
from typing import Any

from anynorm._core.arrays import Array, described, dtype_name
from anynorm._core.backends import ops_of
from anynorm._core.checks import real_number
from anynorm._core.dispatch import Bound
from anynorm._core.ops import Ops
from anynorm.backend import AnyResiduals, RunningStatistics
from anynorm.batch_norm import correction_argument
from anynorm.layers._arrays import Home, check_parameter
from anynorm.layers._layer import Layer
from anynorm.layers._running import entered


def _statistic(name: str, meaning: str) -> Any:
    """Return the property of a layer that reads and replaces one of its statistics."""

    def get(layer: TrackingLayer) -> Any:
        return None if layer._statistics is None else getattr(layer._statistics, name)

    def replace(layer: TrackingLayer, new: Array) -> None:
        if get(layer) is not None:
            layer._check_statistic(name, new)
        layer._replace(**{name: new})

    return property(get, replace, doc=meaning)


class TrackingLayer(Layer):
    """A layer that may keep running statistics of its channels.

    Attributes
    ----------
    running_mean, running_var : array or None
        What evaluation normalizes by; None where nothing is tracked. Replaced, never written to.
    num_batches_tracked, num_batches_skipped : 0-d integer array or None
        How many batches entered the statistics, and how many were left out because theirs were not finite.

    """

    _names = ("weight", "bias", *RunningStatistics._fields)

    running_mean = _statistic("running_mean", "The running mean of each channel, or None.")
    running_var = _statistic("running_var", "The running variance of each channel, or None.")
    num_batches_tracked = _statistic(
        "num_batches_tracked", "How many batches entered the statistics, a 0-d array of integers, or None."
    )
    num_batches_skipped = _statistic(
        "num_batches_skipped", "How many batches were left out because theirs were not finite, likewise."
    )

    momentum: float | None
    correction: int
    track_running_stats: bool

    def _set_up_statistics(self, momentum: object, correction: object, track_running_stats: object, home: Home) -> None:
        """Check what governs the statistics and make the first ones."""
        name = type(self).__name__
        self.momentum = None if momentum is None else real_number(name, "momentum", momentum)
        if self.momentum is not None and not 0 <= self.momentum <= 1:
            msg = (
                f"{name}: momentum must lie in [0, 1] or be None for a cumulative average, got {momentum!r}. It is the "
                "weight of the new value; where another library's momentum m is the weight of the old one, pass 1 - m."
            )
            raise ValueError(msg)
        self.correction = correction_argument(name, correction)
        if not isinstance(track_running_stats, bool):
            msg = f"{name}: track_running_stats must be True or False, got {track_running_stats!r}."
            raise TypeError(msg)
        self.track_running_stats = track_running_stats
        first = RunningStatistics(home.zeros(self._shape), home.ones(self._shape), home.counter(), home.counter())
        self._statistics = first if track_running_stats else None
        self._lock = Lock()

    def _uses_running(self) -> bool:
        """Whether x is normalized by the running statistics."""
        return self.track_running_stats and (self.frozen or not self.training)

    def _learns(self, x: Array, ops: Ops, update: bool) -> bool:
        """Whether a step that does not use the statistics enters them; a RuntimeError where JAX is tracing it."""
        if not (update and self.track_running_stats):
            return False
        if any(ops.traced(array) for array in (x, *self._arrays().values())):
            name, function = type(self).__name__, type(self)._function.__name__
            msg = (
                f"{name}: running statistics cannot be updated while {ops.name} is tracing or transforming the "
                f"call (jit, grad or vmap): the layer would keep a tracer. Use the pure functions, {function}(x, ..., "
                "return_moments=True) and update_running(...), and return the new statistics; or call layer(x, "
                "update=False) or layer.eval()."
            )
            raise RuntimeError(msg)
        return True

    def _enter(self, call: Bound, residuals: AnyResiduals, samples: tuple[int, ...]) -> None:
        """Let the batch of a call enter the statistics; `samples` are axes along which each sample has its own."""
        # torch.compile traces no lock.
        with nullcontext() if call.entry.backend.ops.compiling() else self._lock:
            assert self._statistics is not None  # only layers that track learn
            self._statistics = entered(
                call,
                residuals,
                self._statistics,
                momentum=self.momentum,
                correction=self.correction,
                samples=samples,
            )

    def _check_statistic(self, name: str, new: Array) -> None:
        """Raise unless a statistic can take the place of the layer's own."""
        layer = type(self).__name__
        if name.startswith("running"):
            check_parameter(layer, name, new, self._shape)
        elif getattr(new, "shape", None) != () or "int" not in dtype_name(getattr(new, "dtype", "")):
            assert self._statistics is not None
            library = ops_of(layer, name, self._statistics.num_batches_tracked).xp.__name__
            advice = f"Pass e.g. {library.removeprefix('array_api_compat.')}.asarray(3)."
            msg = f"{layer}: {name} must be a 0-d array of integers, got {described(new)}. {advice}"
            raise TypeError(msg)
        self._check_beside_own({name: new})

    def _replace(self, **new: Array) -> None:
        with self._lock:
            if self._statistics is None:
                msg = f"{type(self).__name__}: with track_running_stats=False there are no running statistics to set. "
                msg += "Make the layer with track_running_stats=True."
                raise AttributeError(msg)
            self._statistics = self._statistics._replace(**new)

    def _assign(self, new: Mapping[str, Any]) -> None:
        """Replace arrays by name, the statistics among them all at once."""
        super()._assign({name: array for name, array in new.items() if name not in RunningStatistics._fields})
        statistics = {name: array for name, array in new.items() if name in RunningStatistics._fields}
        if self.track_running_stats and statistics:
            self._replace(**statistics)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` returned, with a lock of its own."""
        nothing = RunningStatistics(None, None, None, None) if state["track_running_stats"] else None
        super().__setstate__({"_statistics": nothing, **state})
        self._lock = Lock()

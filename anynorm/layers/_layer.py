"""What every layer is: parameters, a mode, and a call to a norm. Which norm, and any statistic, is a subclass's.

A layer keeps no activations: what a gradient needs is the pullback's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, NamedTuple, Self

from anynorm._core.advice_calls import advice_on_binding
from anynorm._core.arrays import A, Array, Namespace, described
from anynorm._core.backends import backend_of, ops_of
from anynorm._core.checks import check_beside, real_number
from anynorm._core.dispatch import Bound, bound, forward
from anynorm._core.ops import Ops
from anynorm._core.plan import Axes, index_argument, show
from anynorm.backend import AnyResiduals
from anynorm.layers._arrays import Home, check_parameter, make_parameters
from anynorm.layers._pytrees import tell_jax
from anynorm.layers._state import Stateful
from anynorm.vjp import pullback_of


class Step(NamedTuple):
    """A call to one of the norms, and whether the layer learns from its moments."""

    function: Callable[..., Any]
    positional: tuple[Any, ...]
    options: dict[str, Any]
    learns: bool = False


class Layer(Stateful):
    """A norm with parameters that are plain arrays of any library, and a mode.

    Attributes
    ----------
    weight, bias : array or None
        The parameters; None where the layer has none. May be replaced at any time.
    training : bool
        Whether the layer is in training mode. Only batch norm, and instance norm that tracks statistics, care.

    """

    _names: tuple[str, ...] = ("weight", "bias")
    _function: Any  # the norm; its name is in errors

    weight: Any
    bias: Any
    training: bool

    def __init_subclass__(cls) -> None:
        """Let the constructor of a layer of anynorm's answer another library's keywords."""
        if "__init__" in vars(cls) and cls.__module__.startswith("anynorm.layers."):
            cls.__init__ = _answering(cls.__init__)  # type: ignore[method-assign]

    def _set_up(
        self,
        shape: tuple[int, ...],
        weight: bool | Array,
        bias: bool | Array,
        xp: Namespace | None,
        dtype: object,
        device: object,
        eps: object,
    ) -> Home:
        """Make the parameters and check eps; return where the layer's arrays live."""
        name = type(self).__name__
        self.eps = real_number(name, "eps", eps)
        if not 0 <= self.eps < float("inf"):
            msg = f"{name}: eps must be 0 or a positive number, got {eps!r}. Choose a value such as 1e-5."
            raise ValueError(msg)
        self._shape = shape
        self.training = True
        self._frozen = False
        self.weight, self.bias, home = make_parameters(name, shape, weight, bias, xp, dtype, device)
        tell_jax()
        return home

    def __call__(self, x: A, /, *, update: bool = True) -> A:
        """Return the normalized x.

        Parameters
        ----------
        x : array
            Of the layer's library and device; float16, bfloat16, float32 or float64.
        update : bool
            Whether a layer that tracks statistics, in training, learns from x. Pass False where the same forward pass
            is computed a second time.

        Returns
        -------
        array
            Of x's shape and dtype.

        Raises
        ------
        TypeError, ValueError, AxisError
            As the function of the same name does, and where x does not have the lengths the layer was made for.
        RuntimeError
            The layer would learn from an x that is being traced by JAX.

        """
        step = self._step(x, update)
        if not step.learns:
            y: A = step.function(x, *step.positional, **step.options)
            return y
        call = bound(step.function, (x, *step.positional), step.options)
        y, residuals = forward(call)
        self._learn(call, residuals)
        return y

    def vjp(self, x: A, /, *, update: bool = True) -> tuple[A, Callable[..., tuple[A, dict[str, Any]]]]:
        """Return the normalized x, and its pullback: the function from dy to the gradients of x and the parameters.

        Parameters
        ----------
        x, update
            As in a call of the layer.

        Returns
        -------
        y : array
            What a call of the layer returns.
        pullback : callable
            pullback(dy) returns (dx, grads), grads a dict keyed like `params` (empty while frozen), and takes `out` as
            that of `anynorm.vjp` does. It keeps what it needs, whatever becomes of the layer, and may be called any
            number of times, in any order with those of other forward passes. Parameters must be replaced and not
            written to until its last call.

        Raises
        ------
        TypeError, ValueError, AxisError, RuntimeError
            As a call of the layer does.

        """
        step = self._step(x, update)
        names = tuple(self.params)
        call = bound(step.function, (x, *step.positional), step.options)
        y, residuals = forward(call)
        if step.learns:
            self._learn(call, residuals)
        pull = pullback_of(call, residuals)

        def pullback(dy: Array, *, out: A | None = None) -> tuple[A, dict[str, Any]]:
            gradients = pull(dy, out=out)
            return gradients.x, {name: getattr(gradients, name) for name in names}

        return y, pullback

    @property
    def params(self) -> dict[str, Any]:
        """The trainable arrays by name: weight and bias where there are any, none while frozen.

        A new dict (a pytree): to change the layer, assign one, `layer.params = {...}`. Writing into this one does not.
        """
        if self._frozen:
            return {}
        return {name: array for name, array in (("weight", self.weight), ("bias", self.bias)) if array is not None}

    @params.setter
    def params(self, new: Mapping[str, Any]) -> None:
        name = type(self).__name__
        if not isinstance(new, Mapping):
            msg = f"{name}: params must be a dict of arrays, got {described(new)}. Pass one like layer.params."
            raise TypeError(msg)
        if set(new) != set(self.params):
            msg = (
                f"{name}: params must have the names {sorted(self.params)}, got {sorted(map(str, new))}. "
                "Pass all of those that layer.params has" + (" (none while frozen)." if self._frozen else ".")
            )
            raise ValueError(msg)
        for parameter, array in new.items():
            check_parameter(name, parameter, array, self._shape)
        self._check_beside_own(new)
        self._assign(new)

    def _check_beside_own(self, new: Mapping[str, Any]) -> None:
        """Raise unless new arrays are of one library, on one device, with each other and with those that stay."""
        together = {name: array for name, array in self._arrays().items() if name not in new} | {**new}
        name, first = type(self).__name__, next(iter(together), "")
        for argument, array in together.items():
            check_beside(name, argument, array, together[first], backend_of(name, first, together[first]), first)

    def _affine(self, ops: Ops) -> dict[str, Any]:
        """Return weight and bias as a step takes them: while frozen, constants to automatic differentiation too."""
        own = {"weight": self.weight, "bias": self.bias}
        if not self._frozen:
            return own
        return {name: None if array is None else ops.constant(array) for name, array in own.items()}

    def train(self, mode: bool = True) -> Self:
        """Set training mode, or evaluation mode with False, and return the layer. What is frozen stays frozen."""
        if not isinstance(mode, bool):
            msg = f"{type(self).__name__}: train takes True or False, got {described(mode)}."
            raise TypeError(msg)
        self.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode and return the layer."""
        return self.train(False)

    def freeze(self) -> Self:
        """Make parameters and statistics constants, whatever the mode, until `unfreeze`; return the layer.

        `params` and the pullback's grads are then empty, torch and JAX derive no gradient of the parameters, and
        running statistics are used and not updated.
        """
        self._frozen = True
        return self

    def unfreeze(self) -> Self:
        """Undo `freeze` and return the layer."""
        self._frozen = False
        return self

    @property
    def frozen(self) -> bool:
        """Whether parameters and statistics are constants."""
        return self._frozen

    def __repr__(self) -> str:
        """Show the arguments the layer was made with: those without a default, eps, momentum, and what differs."""
        from inspect import Parameter, signature  # here, because importing it takes long

        shown = []
        own = next(cls for cls in type(self).__mro__ if cls.__module__.startswith("anynorm."))  # not a subclass of it
        for name, parameter in signature(own).parameters.items():
            if name in ("xp", "dtype", "device"):
                continue
            value = getattr(self, name)
            if name in ("weight", "bias"):
                value = value is not None
            if parameter.default is Parameter.empty:
                shown.append(repr(value))
            elif name in ("eps", "momentum") or value != parameter.default:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _step(self, x: Array, update: bool) -> Step:
        """Check x beside the layer and return the call to make."""
        raise NotImplementedError

    def _learn(self, call: Bound, residuals: AnyResiduals) -> None:
        """Take the batch of a step that learns into the statistics."""
        raise NotImplementedError

    def _check_input(self, x: Array, axes: tuple[int, ...]) -> Ops:
        """Raise unless x is an array beside the layer's, with the layer's lengths along `axes`; return its library.

        Axes that x does not have are left to the norm itself, which names them.
        """
        name = type(self).__name__
        backend = backend_of(name, "x", x)
        ops = backend.ops
        if ops.name == "jax":  # loaded after this layer was made, perhaps
            tell_jax()
        for argument, array in self._arrays().items():
            if ops_of(name, argument, array).name != ops.name:
                raise self._other_library(ops)
            check_beside(name, argument, array, x, backend)
        shape, ndim = ops.shape(x), len(ops.shape(x))
        if -ndim <= min(axes) and max(axes) < ndim:
            lengths = tuple([shape[axis] for axis in sorted([axis % ndim for axis in axes])])
            if None not in lengths and lengths != self._shape:
                where = axes[0] if len(axes) == 1 else axes
                msg = (
                    f"{name}: x of shape {show(shape)} has {_few(lengths)} along axis {where}, but the layer was made "
                    f"for {_few(self._shape)}. {_where(self._shape, shape)}"
                )
                raise ValueError(msg)
        return ops

    def _other_library(self, ops: Ops) -> TypeError:
        """Return the error for an x of another library than some array of the layer."""
        name, arrays = type(self).__name__, self._arrays()
        libraries = {ops_of(name, argument, array).name for argument, array in arrays.items()}
        traced = [argument for argument, array in arrays.items() if ops_of(name, argument, array).traced(array)]
        advice = ["convert x"] if len(libraries) == 1 or traced else []
        module = ops.xp.__name__.removeprefix("array_api_compat.")
        advice += [] if traced else [f"move the layer with layer.to({module}), given the module"]
        return TypeError(
            f"{name}: x is an array of {ops.name}, but the layer holds arrays of {' and '.join(sorted(libraries))}. "
            f"Nothing is converted silently: {', or '.join(advice)}."
        )


def _answering(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor with advice where its arguments are no arguments of it."""

    @wraps(init)
    def answering(self: Layer, *args: Any, **options: Any) -> None:
        try:
            init(self, *args, **options)
        except TypeError as error:
            raise advice_on_binding(type(self).__name__, partial(init, self), args, options, error) from None

    return answering


def _where(lengths: tuple[int, ...], shape: tuple[int | None, ...]) -> str:
    """Return what to try where x does not have the layer's lengths."""
    if len(lengths) == 1 and lengths[0] in shape:
        return f"Axis {shape.index(lengths[0])} has {lengths[0]}: if that is meant, name it when the layer is made."
    return "Check the layer's arguments, or the order of x's axes."


def _few(lengths: tuple[int | None, ...]) -> str:
    return str(lengths[0]) if len(lengths) == 1 else show(lengths)


def count(layer: str, name: str, value: object) -> int:
    """Return an argument that counts something as an int of at least 1."""
    number = index_argument(layer, name, value)
    if number < 1:
        msg = f"{layer}: {name} must be at least 1, got {number}. Pass a positive integer."
        raise ValueError(msg)
    return number


def check_apart(layer: str, channel_axis: int, batch_axis: Axes) -> None:
    """Raise a ValueError if the channels' axis is among those of the batch, as far as that shows without an array."""
    if batch_axis is not None and channel_axis in ((batch_axis,) if isinstance(batch_axis, int) else batch_axis):
        msg = (
            f"{layer}: batch_axis={batch_axis} contains channel_axis={channel_axis}. Name the axes of the batch alone, "
            "or pass batch_axis=None for unbatched input."
        )
        raise ValueError(msg)

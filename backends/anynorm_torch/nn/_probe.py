"""Finding out what a layer computes: its own forward, on numbers drawn by chance and hard ones, against anynorm's."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anynorm_torch.nn._equal import Dtypes, condition, hostile, resemble, same, same_gradients, same_rounding
from anynorm_torch.nn._operands import operands
from anynorm_torch.nn._rules import GATES, ORDERS, TRACKING, Rule, by_rule
from anynorm_torch.nn._twins import Call, Odd, OtherShape, Twin, method_of, tensors_of, undisturbed

_HALF = (torch.bfloat16, torch.float16)
_DTYPES = (torch.float64, torch.float32, *_HALF)
_MIXED = [*itertools.product(_HALF, [torch.float32]), *itertools.product([torch.float32], _HALF)]
_RANKS = (4, 3, 2, 5)
_ELEMENTS = 8192  # of which ties are counted
# What is one in exact arithmetic.
_SAME = {"after": ("after", "before", "promoted")}
_NONE = "what it computes is none of anynorm's norms"


@dataclass(frozen=True)
class _Site:
    """Where the features of an input lie: along the last of its axes, or along axis 1."""

    rank: int
    last: bool
    length: int

    def shape(self, elements: int) -> tuple[int, ...]:
        """Return a shape of so many elements at least, whose other axes have lengths of their own."""
        others = [extent for extent in (2, 3, 5, 7, 11) if extent != self.length][: self.rank - 1]
        rest = self.length
        for extent in others[:-1]:
            rest *= extent
        others[-1] = max(others[-1], -(-elements // rest))
        others[-1] += others[-1] == self.length
        return (*others, self.length) if self.last else (others[0], self.length, *others[1:])


def find(layer: torch.nn.Module) -> Rule | str:
    """Return the rule by which anynorm computes what a layer does, or why there is none."""
    try:
        with undisturbed():
            try:
                return _Search(layer, full=False).rule()
            except Odd:  # some have a number that depends on their length
                return _Search(layer, full=True).rule()
    except Odd as reason:
        return str(reason)
    except Exception as error:  # whatever another's code raises
        return f"trying it out failed: {_words(error)}"


class _Search:
    """The search for one layer's rule, at its own length or a short one."""

    def __init__(self, layer: torch.nn.Module, *, full: bool) -> None:
        self.gated = _takes_gate(layer)
        self.layer: Any = layer
        self.own = type(layer)
        self.operands = operands(layer)
        length, *other = self.operands.lengths
        short = length if full else self.operands.short
        self.lengths = (short, *other)
        self.generator = torch.Generator("cpu").manual_seed(20)
        self.twin = Twin(layer, length, short, self.generator)

    def rule(self) -> Rule:
        """Return the rule; raise Odd where there is none."""
        words: list[str] = []
        for dtype in (torch.float64, torch.float32):  # in which layers of float32 alone are tried
            for site in self._sites(dtype, words):
                found = self._at(site, dtype)
                if found is not None:
                    rule, compute = found
                    rule = replace(rule, ranks=(site.rank, *self._other_ranks(rule, site, dtype, compute)))
                    rule = replace(rule, orders=tuple(self._orders(rule, site, compute)))
                    rule = replace(rule, memory=tuple(self._memory(rule, site, dtype)))
                    self._check_own_dtype(rule)
                    return rule
        raise Odd(words[-1] if words[1:] else _NONE)

    def _sites(self, dtype: torch.dtype, words: list[str]) -> Iterator[_Site]:
        """Yield where the layer's forward runs and returns the dtype that it is given; add why not, if nowhere."""
        message, runs = "", False
        for rank, last, length in itertools.product(_RANKS, (True, False), self.lengths):
            site = _Site(rank, last, length)
            if site.rank == 2 and not site.last:
                continue
            try:
                own = self._call(self.own, self._drawn(site).to(dtype), dtype)
            except OtherShape:  # by broadcasting: the features lie elsewhere
                continue
            except Odd:
                raise
            except Exception as error:  # whatever another's code raises
                message = message or _words(error)
                continue
            runs = True
            if own.y.dtype == dtype:
                yield site
        if not runs:
            words.append(f"its forward takes no tensor that a norm layer would. {message}")

    def _drawn(self, site: _Site, elements: int = 1) -> Tensor:
        """Return numbers of mean 0.5 whose spread is another for each sample."""
        x = torch.randn(site.shape(elements), generator=self.generator, device="cpu", dtype=torch.float32)
        return x * torch.linspace(1, 2, len(x), device="cpu").reshape(-1, *[1] * (site.rank - 1)) + 0.5

    def _call(self, cls: Any, x: Tensor, dtype: Any, training: bool = False, dy: Tensor | None = None) -> Call:
        gate = [torch.linspace(-3, 4, x.numel(), dtype=x.dtype, device="cpu").reshape(x.shape)] * self.gated
        return self.twin.call(cls, (x, *gate), dtype, training=training, dy=dy)

    def _at(self, site: _Site, dtype: torch.dtype) -> tuple[Rule, torch.dtype] | None:
        """Return the rule that holds for every input of one shape, and the dtype that the layer computes in."""
        inputs = list(itertools.product(hostile(self._drawn(site).to(dtype)), (False, True)))
        owns = [self._call(self.own, inputs[0][0], dtype)]
        for likely in self._candidates(site, dtype, owns[0].log):
            if not self._resembles(likely, owns[0], inputs[0][0]):
                continue
            owns += [self._call(self.own, x, dtype, training) for x, training in inputs[len(owns) :]]
            for eps in ("eps",) if likely.norm in TRACKING else self.operands.eps:
                rule = replace(likely, eps=eps)
                compute = self._agreement(rule, owns, inputs)
                if compute is not None:
                    self._check_gradients(rule, inputs[0][0], compute)
                    return rule, compute
        return None

    def _resembles(self, rule: Rule, own: Call, x: Tensor) -> bool:
        """Return whether a candidate's result may become the layer's by another eps."""
        try:
            return resemble(own, self._call(self._class(rule), x, x.dtype))
        except Exception:  # a candidate that does not suit the layer
            return False

    def _class(self, rule: Rule) -> Any:
        """Return a class that knows the rule alone: what it falls back to is no evidence."""
        return by_rule(self.own, rule, _unknown)

    def _agreement(self, rule: Rule, owns: list[Call], inputs: list[Any]) -> torch.dtype | None:
        """Return the dtype to whose rounding a candidate gives what the layer gives for all inputs, if it does."""
        cls = self._class(rule)
        compute: torch.dtype = inputs[0][0].dtype
        for own, (x, training) in zip(owns, inputs, strict=True):
            try:
                ours = self._call(cls, x, x.dtype, training)
            except Exception:  # a candidate that does not suit the layer
                return None
            factor = condition(x, centres=rule.centres)
            if not same(own, ours, compute, factor):
                compute = torch.float32
                if not same(own, ours, compute, factor):
                    return None
        return compute

    def _check_gradients(self, rule: Rule, x: Tensor, compute: torch.dtype) -> None:
        dy = torch.randn(x.shape, generator=self.generator, device="cpu", dtype=x.dtype)
        for training in (False, True):
            own, ours = [self._call(cls, x, x.dtype, training, dy) for cls in (self.own, self._class(rule))]
            if not same_gradients(own, ours, compute):
                msg = f"its result is that of {rule.norm}, its gradient is not"
                raise Odd(msg)

    def _candidates(self, site: _Site, dtype: torch.dtype, then: tuple[str, ...]) -> Iterator[Rule]:
        """Yield rules to try, but for eps, the likely ones first."""
        at = self.operands
        common: dict[str, Any] = {"eps": at.eps[0], "then": then, "ranks": (site.rank,)}
        operands: dict[str, Any] = {"weight": at.weight, "bias": at.bias}
        of_dtypes = dtype, None if at.weight is None else dtype
        for norm, (base, _) in TRACKING.items():
            if isinstance(self.layer, base):
                yield Rule(norm, **common, **operands, orders=((of_dtypes, "after"),))
        for (order, gate), (norm, shape) in itertools.product(self._ways(), list(self._norms(site))):
            yield Rule(norm, **common, **operands, **shape, gate=gate, orders=((of_dtypes, order),))
        if at.weight or at.bias:  # which the forward may leave unused
            for norm, shape in self._norms(site):
                yield Rule(norm, **common, **shape, orders=(((dtype, None), "after"),))

    def _ways(self) -> list[tuple[str, str | None]]:
        """Return the orders of weight and gate, and the functions of a gate, that differ in exact arithmetic."""
        if self.gated:
            return list(itertools.product(["gated, after", "gated x, after"], GATES))
        return [("after", None), ("plus one", None)] if self.operands.weight else [("after", None)]

    def _norms(self, site: _Site) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the norms that may be meant by an input's shape and the layer's tensors, and what they reduce."""
        at = self.operands
        channel: dict[str, Any] = {"axis": (-1,) if site.last and site.rank > 2 else (1,)}
        if at.mean and at.var:
            yield "batch_norm", {"mean": at.mean, "var": at.var, **channel}
            return
        depth = max(1, self.twin.tensors[at.weight].ndim) if at.weight else 1
        axis = tuple(range(-depth, 0)) if site.last else (1,)
        yield from [("rms_norm", {"axis": axis}), ("layer_norm", {"axis": axis})]
        yield from [("group_norm", {"groups": groups, **channel}) for groups in at.groups]
        yield from [("instance_norm", channel), ("batch_norm", channel)]
        if site.last:
            names = ("rms_norm of groups", "rms_norm of groups by their size")
            yield from [(norm, {"groups": groups}) for norm in names for groups in at.groups if isinstance(groups, str)]

    def _other_ranks(self, rule: Rule, site: _Site, dtype: torch.dtype, compute: torch.dtype) -> Iterator[int]:
        """Yield the other numbers of axes for which the rule holds."""
        for rank in sorted({*_RANKS} - {site.rank}):
            x = self._drawn(replace(site, rank=rank)).to(dtype)
            try:
                owns = [self._call(self.own, x, dtype, training) for training in (False, True)]
            except Exception:  # it takes no such input
                continue
            inputs = [(x, training) for training in (False, True)]
            found = self._agreement(replace(rule, ranks=(rank,)), owns, inputs)
            if found in (dtype, compute):
                yield rank

    def _memory(self, rule: Rule, site: _Site, dtype: torch.dtype) -> Iterator[tuple[int, ...]]:
        """Yield, for each number of axes, the order of axes in memory that results have whatever that of x."""
        for rank in rule.ranks:
            x = self._drawn(replace(site, rank=rank)).to(dtype)
            channels = 1 if rank > 2 else 0  # which lie last, or the sets do
            turned = x.movedim(channels, -1).contiguous().movedim(-1, channels)
            orders = [_order(self._call(self.own, given, dtype).y) for given in (x, turned)]
            if orders[0] is not None and orders[0] == orders[1]:
                yield orders[0]

    def _orders(self, rule: Rule, site: _Site, compute: torch.dtype) -> Iterator[tuple[Dtypes, str]]:
        """Yield pairs of dtypes and the order of rounding that is the layer's own, where there is one."""
        x = self._drawn(site, _ELEMENTS)
        kind = rule.orders[0][1].partition(",")[0]
        orders = [order for order in ORDERS if order.partition(",")[0] in _SAME.get(kind, (kind,))]
        for dtypes in [*zip(_DTYPES, _DTYPES, strict=True), *(_MIXED if rule.weight else [])]:
            try:
                own = self._call(self.own, x.to(dtypes[0]), dtypes[1])
            except Exception:  # not every layer takes every pair
                continue
            pair = dtypes[0], dtypes[1] if rule.weight else None
            alike = (order for order in orders if self._rounds(rule, pair, order, x, dtypes[1], own, compute))
            yield from [(pair, order) for order in itertools.islice(alike, 1)]

    def _rounds(
        self, rule: Rule, pair: Dtypes, order: str, x: Tensor, dtype: Any, own: Call, compute: torch.dtype
    ) -> bool:
        """Return whether an order of rounding gives the layer's result."""
        try:
            ours = self._call(self._class(replace(rule, orders=((pair, order),))), x.to(pair[0]), dtype)
        except Exception:  # an order that does not suit the layer
            return False
        return same_rounding(own, ours, pair, compute)

    def _check_own_dtype(self, rule: Rule) -> None:
        floating = [value.dtype for value in tensors_of(self.layer).values() if value.is_floating_point()]
        dtype = floating[0] if floating else torch.float32
        if (dtype, dtype if rule.weight else None) not in dict(rule.orders):
            msg = f"in {str(dtype).removeprefix('torch.')} it rounds as no rule of anynorm's does"
            raise Odd(msg)


def _takes_gate(layer: torch.nn.Module) -> bool:
    """Return whether a layer's forward takes a second tensor; raise Odd if it takes more."""
    parameters = list(inspect.signature(getattr(type(layer), method_of(type(layer)))).parameters.values())[1:]
    needed = [value.name for value in parameters if value.default is value.empty and value.kind < value.VAR_POSITIONAL]
    if len(needed) > 2:
        msg = f"its forward takes {', '.join(needed)}"
        raise Odd(msg)
    return len(needed) == 2 or any("gate" in value.name for value in parameters[1:2])


def _order(x: Tensor) -> tuple[int, ...] | None:
    """Return a tensor's axes in their order in memory, outermost first; None if it has gaps."""
    axes = tuple(sorted(range(x.ndim), key=x.stride().__getitem__, reverse=True))
    return axes if x.permute(axes).is_contiguous() else None


def _unknown(*args: Any) -> Any:
    raise NotImplementedError


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]

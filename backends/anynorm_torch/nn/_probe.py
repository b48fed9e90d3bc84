"""Finding out what a layer computes: its own forward, on numbers drawn by chance and hard ones, against anynorm's."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anynorm_torch.nn._equal import Dtypes, condition, hostile, same, same_gradients, same_rounding
from anynorm_torch.nn._operands import operands
from anynorm_torch.nn._rules import ORDERS, TRACKING, Rule, by_rule
from anynorm_torch.nn._twins import Call, Odd, OtherShape, Twin, tensors_of

_HALF = (torch.bfloat16, torch.float16)
_DTYPES = (torch.float64, torch.float32, *_HALF)
_MIXED = [*itertools.product(_HALF, [torch.float32]), *itertools.product([torch.float32], _HALF)]
_RANKS = (4, 3, 2, 5)
_ELEMENTS = 8192  # of which ties are counted
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
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # tensors are small: with other processes about, threads wait ten times as long as they work
    try:
        try:
            return _Search(layer, full=False).rule()
        except Odd:  # some have a number that depends on their length
            return _Search(layer, full=True).rule()
    except Odd as reason:
        return str(reason)
    except Exception as error:  # whatever another's code raises
        return f"trying it out failed: {_words(error)}"
    finally:
        torch.set_num_threads(threads)


class _Search:
    """The search for one layer's rule, at its own length or a short one."""

    def __init__(self, layer: torch.nn.Module, *, full: bool) -> None:
        _check_arguments(layer)
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
        dtype, sites = self._sites()
        for site in sites:
            found = self._at(site, dtype)
            if found is not None:
                rule, compute = found
                rule = replace(rule, ranks=(site.rank, *self._other_ranks(rule, site, dtype, compute)))
                rule = replace(rule, orders=tuple(self._orders(rule, site, compute)))
                self._check_own_dtype(rule)
                return rule
        raise Odd(_NONE)

    def _sites(self) -> tuple[torch.dtype, list[_Site]]:
        """Return where the layer's forward runs at all, in float64 if it can."""
        possible = itertools.product(_RANKS, (True, False), self.lengths)
        sites = [_Site(rank, last, length) for rank, last, length in possible if last or rank > 2]
        words = ""
        for dtype in (torch.float64, torch.float32):
            runs = []
            for site in sites:
                try:
                    self._call(self.own, self._drawn(site).to(dtype), dtype)
                    runs.append(site)
                except OtherShape:  # by broadcasting: the features lie elsewhere
                    continue
                except Odd:
                    raise
                except Exception as error:  # whatever another's code raises
                    words = _words(error)
            if runs:
                return dtype, runs
        msg = f"its forward takes no tensor that a norm layer would. {words}"
        raise Odd(msg)

    def _drawn(self, site: _Site, elements: int = 1) -> Tensor:
        """Return numbers of mean 0.5 whose spread is another for each sample."""
        x = torch.randn(site.shape(elements), generator=self.generator, device="cpu", dtype=torch.float32)
        return x * torch.linspace(1, 2, len(x), device="cpu").reshape(-1, *[1] * (site.rank - 1)) + 0.5

    def _call(self, cls: Any, x: Tensor, dtype: Any, training: bool = False, dy: Tensor | None = None) -> Call:
        return self.twin.call(cls, x, dtype, training=training, dy=dy)

    def _at(self, site: _Site, dtype: torch.dtype) -> tuple[Rule, torch.dtype] | None:
        """Return the rule that holds for every input of one shape, and the dtype that the layer computes in."""
        inputs = list(itertools.product(hostile(self._drawn(site).to(dtype)), (False, True)))
        owns = [self._call(self.own, x, dtype, training) for x, training in inputs]
        for compute in dict.fromkeys((dtype, torch.float32)):
            for rule in self._candidates(site, dtype, owns[0].log):
                if self._agrees(by_rule(self.own, rule), rule, owns, inputs, compute):
                    self._check_gradients(rule, inputs[0][0], compute)
                    return rule, compute
        return None

    def _agrees(self, cls: Any, rule: Rule, owns: list[Call], inputs: list[Any], compute: torch.dtype) -> bool:
        """Return whether a candidate gives what the layer gives, for all inputs."""
        for own, (x, training) in zip(owns, inputs, strict=True):
            try:
                ours = self._call(cls, x, x.dtype, training)
            except Exception:  # a candidate that does not suit the layer
                return False
            if not same(own, ours, compute, condition(x, centres=rule.centres)):
                return False
        return True

    def _check_gradients(self, rule: Rule, x: Tensor, compute: torch.dtype) -> None:
        dy = torch.randn(x.shape, generator=self.generator, device="cpu", dtype=x.dtype)
        for training in (False, True):
            own, ours = [self._call(cls, x, x.dtype, training, dy) for cls in (self.own, by_rule(self.own, rule))]
            if not same_gradients(own, ours, compute):
                msg = f"its result is that of {rule.norm}, its gradient is not"
                raise Odd(msg)

    def _candidates(self, site: _Site, dtype: torch.dtype, then: tuple[str, ...]) -> Iterator[Rule]:
        """Yield rules to try, the likely ones first."""
        at = self.operands
        weight_dtype = None if at.weight is None else dtype
        common: dict[str, Any] = {"weight": at.weight, "bias": at.bias, "then": then, "ranks": (site.rank,)}
        for norm, (base, _) in TRACKING.items():
            if isinstance(self.layer, base):
                yield Rule(norm, "eps", orders=(((dtype, weight_dtype), "after"),), **common)
        axis = tuple(range(-max(1, self.twin.tensors[at.weight].ndim), 0)) if at.weight and site.last else (-1,)
        for order, eps in itertools.product(["after", "plus one"][: 2 if at.weight else 1], at.eps):
            options = {**common, "eps": eps, "orders": (((dtype, weight_dtype), order),)}
            by_channel = not site.last or site.rank == 2
            if at.mean and at.var:
                yield from [Rule("batch_norm", mean=at.mean, var=at.var, **options)] * by_channel
                continue
            yield from [Rule(norm, axis=axis if site.last else (1,), **options) for norm in ("rms_norm", "layer_norm")]
            if by_channel:
                yield from [Rule("group_norm", groups=groups, **options) for groups in at.groups]
                yield from [Rule(norm, **options) for norm in ("instance_norm", "batch_norm")]

    def _other_ranks(self, rule: Rule, site: _Site, dtype: torch.dtype, compute: torch.dtype) -> Iterator[int]:
        """Yield the other numbers of axes for which the rule holds."""
        for rank in sorted({*_RANKS} - {site.rank}):
            x = self._drawn(replace(site, rank=rank)).to(dtype)
            try:
                owns = [self._call(self.own, x, dtype, training) for training in (False, True)]
            except Exception:  # it takes no such input
                continue
            inputs = [(x, training) for training in (False, True)]
            if self._agrees(by_rule(self.own, replace(rule, ranks=(rank,))), rule, owns, inputs, compute):
                yield rank

    def _orders(self, rule: Rule, site: _Site, compute: torch.dtype) -> Iterator[tuple[Dtypes, str]]:
        """Yield pairs of dtypes and the order of rounding that is the layer's own, where there is one."""
        x = self._drawn(site, _ELEMENTS)
        plus_one = rule.orders[0][1] != "after"
        orders = [order for order in ORDERS if order.startswith("plus one") == plus_one]
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
            ours = self._call(by_rule(self.own, replace(rule, orders=((pair, order),))), x.to(pair[0]), dtype)
        except Exception:  # an order that does not suit the layer
            return False
        return same_rounding(own, ours, pair, compute)

    def _check_own_dtype(self, rule: Rule) -> None:
        floating = [value.dtype for value in tensors_of(self.layer).values() if value.is_floating_point()]
        dtype = floating[0] if floating else torch.float32
        if (dtype, dtype if rule.weight else None) not in dict(rule.orders):
            msg = f"in {str(dtype).removeprefix('torch.')} it rounds as no rule of anynorm's does"
            raise Odd(msg)


def _check_arguments(layer: torch.nn.Module) -> None:
    """Raise Odd unless a layer's forward may be called with one tensor."""
    parameters = list(inspect.signature(type(layer).forward).parameters.values())[1:]
    needed = [value.name for value in parameters if value.default is value.empty and value.kind < value.VAR_POSITIONAL]
    if len(needed) > 1:
        msg = f"its forward takes {' and '.join(needed)}"
        raise Odd(msg)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]

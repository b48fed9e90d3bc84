"""Calls and backward passes on torch's CPU tensors of a kind that was met before: what tells kinds apart is noticed.

Each test makes plain calls until their kind is known, and then one that differs in what must not be overlooked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from engine_runs import in_threads, watched
from libraries import nothing_known

import anynorm as an
from anynorm._core.backends import backend_of

torch: Any = pytest.importorskip("torch")
pytest.importorskip("numba")
forward_ad: Any = pytest.importorskip("torch.autograd.forward_ad")

AMID_HOOKS = torch.autograd.graph.saved_tensors_hooks


@contextmanager
def _anew(guards: Any = None) -> Iterator[Any]:
    """Forget all signatures; where `guards` is given, make guards with that instead of torch's own."""
    from anynorm_torch import _signature

    with nothing_known(), mock.patch.multiple(_signature, _signatures={}, _guarded={}):
        if guards is None:
            yield _signature
        else:
            with mock.patch.object(_signature, "_guard_maker", guards):
                yield _signature


def _signature_of(*arrays: Any) -> Any:
    """Return the signature of a call with x, weight, bias, mean, var, out."""
    return backend_of("test", "x", arrays[0]).signature(*arrays)


def _leaves(*dtypes: Any) -> list[Any]:
    """Return x, weight and bias that require gradients."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((6, 8), (8,), (8,))
    return [
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


def _gradients(leaves: list[Any], dy: Any) -> Any:
    return torch.autograd.grad(an.layer_norm(*leaves), leaves, dy)


def _exact(leaves: list[Any], dy: Any) -> list[Any]:
    """Return y and the gradients by torch, in float64."""
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = torch.nn.functional.layer_norm(exact[0], (8,), *exact[1:])
    return [y, *torch.autograd.grad(y, exact, dy.detach().double())]


FLOATS = [torch.float32] * 3


@pytest.fixture
def known() -> Any:
    """Return leaves, dy and gradients of a backward pass that is known."""
    leaves, dy = _leaves(*FLOATS), torch.randn(6, 8)
    return leaves, dy, [_gradients(leaves, dy) for _ in range(3)][-1]


def test_tensors_alike_are_of_one_kind() -> None:
    """A kind is one object, found by a single question the second time, and another for each fact that counts."""
    x, w, b = _leaves(*FLOATS)
    with _anew() as signatures:
        first = _signature_of(x, w, b, None, None, None)
        with mock.patch.object(signatures, "_looked_up", side_effect=AssertionError):
            assert _signature_of(x.detach().clone().requires_grad_(), w, b, None, None, None) is first
        unlike = [
            (x.detach(), w, b),
            (x, w, None),
            (x, None, b),
            (x.t().contiguous().t(), w, b),
            (x[:3], w, b),
            (x.double(), w, b),
            (x, torch.nn.Parameter(w[:1]), b),
            (x.view(48, 1), w, b),
        ]
        others = [_signature_of(*value, None, None, None) for value in unlike]
    assert None not in others
    assert len({first, *others}) == 1 + len(unlike)


def test_kinds_are_told_without_torchs_question() -> None:
    """Where torch lacks what its compiler asks, kinds are told apart as well, and results are the same."""
    leaves, dy = _leaves(*FLOATS), torch.randn(6, 8)
    y, found = an.layer_norm(*leaves), _gradients(leaves, dy)
    with _anew(guards=lambda: None) as signatures:
        for _ in range(3):
            assert torch.equal(an.layer_norm(*leaves), y)
            assert all(map(torch.equal, _gradients(leaves, dy), found))
        assert not any(signatures._guarded.values())
        assert signatures._signatures


def test_torchs_question_is_asked_here() -> None:
    """The torch of this environment has the question, so that these tests test it."""
    from anynorm_torch import _signature

    assert _signature._guard_maker() is not None


def test_memory_of_kinds_is_bounded() -> None:
    """What is remembered starts anew when it has grown, and keeps few questions for each number of elements."""
    with _anew() as signatures, mock.patch.object(signatures, "MANY", 5):
        for length in range(1, 20):
            an.layer_norm(torch.ones(2, length))
        assert len(signatures._signatures) <= 5
    with _anew() as signatures:
        for axes in range(1, 20):
            an.layer_norm(torch.ones(*[1] * axes, 6))
        assert max(map(len, signatures._guarded.values())) == signatures.FEW_GUARDS


def test_biases_of_two_shapes(known: Any) -> None:
    """Of bias a backward pass sees no tensor: its gradient has its shape, whichever was met first."""
    leaves, dy, (dx, dweight, dbias) = known
    column = leaves[2].detach().reshape(1, 8).requires_grad_()
    for _ in range(3):
        found = _gradients([*leaves[:2], column], dy)
        assert all(map(torch.equal, found, (dx, dweight, dbias.reshape(1, 8))))
        assert all(map(torch.equal, _gradients(leaves, dy), (dx, dweight, dbias)))


def test_one_tensor_twice(known: Any) -> None:
    """A tensor that is weight and bias, or x and dy, is served as two are."""
    (x, w, _), _, _ = known
    y = an.layer_norm(x, w, w)
    torch.testing.assert_close(y, an.layer_norm(x, w, w.clone()))
    found = torch.autograd.grad(y, (x, w), x.detach())
    torch.testing.assert_close(torch.autograd.grad(an.layer_norm(x, w, w), (x, w), x)[1], found[1])


GRADIENTS: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda dy: dy.t().contiguous().t(),
    "every-second": lambda dy: dy.repeat_interleave(2, 1)[:, ::2],
    "expanded": lambda dy: dy[:1, :1].expand(6, 8),
    "negated-lazily": lambda dy: torch._neg_view(-dy),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_other_dy(known: Any, kind: str) -> None:
    """A dy that lies otherwise, or whose memory is not its value, gives right gradients though the pass is known."""
    leaves, dy, _ = known
    other = GRADIENTS[kind](dy)
    for one, exact in zip(_gradients(leaves, other), _exact(leaves, other)[1:], strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=1e-4, atol=1e-5)


BROUGHT_BACK: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda tensor: tensor.t().contiguous().t(),
    "in-float64": lambda tensor: tensor.double(),
    "negated-lazily": lambda tensor: torch._neg_view(-tensor),
    "of-another-type": lambda tensor: tensor.as_subclass(_Derived),
}


class _Derived(torch.Tensor):  # type: ignore[misc]
    pass


@pytest.mark.parametrize("kind", BROUGHT_BACK)
def test_other_saved_tensors(known: Any, kind: str) -> None:
    """Hooks that bring back tensors of another kind change no gradient of a pass that is known."""
    leaves, dy, found = known
    with AMID_HOOKS(lambda tensor: tensor, lambda tensor: BROUGHT_BACK[kind](tensor.detach())):
        others = _gradients(leaves, dy)
    for one, other in zip(others, found, strict=True):
        torch.testing.assert_close(one.as_subclass(torch.Tensor), other, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("kind", BROUGHT_BACK)
def test_other_saved_statistics(known: Any, kind: str) -> None:
    """Nor do hooks that bring back the statistics alone otherwise, which are a tensor where threads share work."""
    leaves, dy, found = known
    with in_threads(2), AMID_HOOKS(lambda t: t, lambda t: BROUGHT_BACK[kind](t.detach()) if t.shape == (5, 6) else t):
        others = [_gradients(leaves, dy) for _ in range(2)]
    for one, other in zip(sum(others, ()), [*found, *found], strict=True):
        torch.testing.assert_close(one.as_subclass(torch.Tensor), other, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_some_gradients_are_needed(known: Any) -> None:
    """Of a pass that is known only those gradients are returned that are asked for."""
    leaves, dy, found = known
    for which in range(3):
        (only,) = torch.autograd.grad(an.layer_norm(*leaves), leaves[which : which + 1], dy)
        assert torch.equal(only, found[which])
    leaves[1].requires_grad_(False)
    y = an.layer_norm(*leaves)
    assert torch.equal(torch.autograd.grad(y, leaves[0], dy)[0], found[0])


def test_gradients_of_a_known_pass_are_the_callers(known: Any) -> None:
    """Each backward pass writes to memory of its own, dense and in the parameters' shapes."""
    leaves, dy, found = known
    again = _gradients(leaves, dy)
    for one, other, leaf in zip(found, again, leaves, strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
        assert one.shape == leaf.shape
        assert not one.requires_grad
        assert not one._is_view()


@pytest.mark.parametrize("norm", ["batch_norm", "group_norm"])
def test_layout_is_kept(norm: str) -> None:
    """y and dx of known calls lie as x does, channels last too, and threads set meanwhile are heeded."""
    x = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    groups = (2,) if norm == "group_norm" else ()
    call: Any = getattr(an, norm)
    for threads in (1, 1, 2, 1):
        with in_threads(threads), watched() as jobs:
            y = call(x, *groups)
            (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert y.stride() == dx.stride() == x.stride()
        assert [job.threads for job in jobs] == [threads, threads]


def test_threads_set_between_the_passes() -> None:
    """The backward pass of a known kind runs in the threads of its own moment, with what the forward pass learned."""
    leaves, dy = _leaves(*FLOATS), torch.randn(6, 8)
    found = _gradients(leaves, dy)
    for threads in (1, 2, 1):
        y = an.layer_norm(*leaves)
        with in_threads(threads), watched() as jobs:
            others = torch.autograd.grad(y, leaves, dy)
        assert [job.threads for job in jobs] == [threads]
        assert all(map(torch.equal, others, found))


WITHOUT_STRIDES: dict[str, Callable[[Any], Any]] = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "compressed": lambda tensor: tensor.to_sparse_csr(),
    "mkldnn": lambda tensor: tensor.to_mkldnn(),
    "nested": lambda tensor: torch.nested.nested_tensor(list(tensor)),
}


@pytest.mark.filterwarnings("ignore:.*(prototype|beta) s:UserWarning")  # torch's own
@pytest.mark.parametrize("kind", WITHOUT_STRIDES)
@pytest.mark.parametrize("place", ["x", "weight", "dy"])
def test_tensors_without_strides(place: str, kind: str) -> None:
    """A tensor of no strides, as many elements as it has, is told from those of a known kind, and refused."""
    x, w = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    for _ in range(3):
        torch.autograd.grad(an.layer_norm(x, w), (x, w), torch.ones(6, 8))
    other = WITHOUT_STRIDES[kind](torch.randn(6, 8))
    if place == "dy":
        y = an.layer_norm(x, w)
        with pytest.raises((RuntimeError, NotImplementedError, TypeError, ValueError)):
            torch.autograd.grad(y, (x, w), other)
        return
    arguments = (other, w) if place == "x" else (x, other)
    assert _signature_of(*arguments, None, None, None, None) is None
    with pytest.raises((TypeError, ValueError), match=place):
        an.layer_norm(*arguments)


def test_subclass_is_asked_nothing(known: Any) -> None:
    """A tensor of another type is told by that: its own methods, which may be anything, are not called for it."""

    class Silent(torch.Tensor):  # type: ignore[misc]
        @classmethod
        def __torch_function__(cls, *_: Any, **__: Any) -> Any:
            raise AssertionError

    (x, w, b), _, _ = known
    assert _signature_of(torch.Tensor._make_subclass(Silent, x.detach()), w, b, None, None, None) is None
    assert _signature_of(x, torch.Tensor._make_subclass(Silent, w.detach()), b, None, None, None) is None
    assert _signature_of(x, w, b, None, None, torch.Tensor._make_subclass(Silent, x.detach())) is None


def test_forward_mode_is_noticed_amid_a_known_backward_pass(known: Any) -> None:
    """Within a level of forward mode, where tensors may carry tangents, no engine reads them."""
    leaves, dy, found = known
    y = an.layer_norm(*leaves)
    with forward_ad.dual_level(), watched() as jobs:
        others = torch.autograd.grad(y, leaves, dy)
    assert not jobs
    for one, other in zip(others, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


HALVES = {
    "both": (torch.bfloat16,) * 3,
    "float16": (torch.float16,) * 3,
    "weight-alone": (torch.bfloat16, torch.bfloat16, None),
    "bias-alone": (torch.bfloat16, None, torch.bfloat16),
    "mixed": (torch.float16, torch.bfloat16, torch.float32),
    "weight-in-half": (torch.float32, torch.bfloat16, torch.float16),
}


@pytest.mark.parametrize("dtypes", HALVES)
@pytest.mark.parametrize("rows", [3, 40])
def test_half_precision(dtypes: str, rows: int) -> None:
    """Parameters in half precision, or one of them, give what they give in float32, and gradients in their dtype."""
    kinds = HALVES[dtypes]
    length = 37  # no whole number of vectors
    given = [kind if kind is not None else torch.float32 for kind in kinds]
    shapes = ((rows, length), (length,), (length,))
    leaves = [torch.randn(*shape).to(kind).requires_grad_() for shape, kind in zip(shapes, given, strict=True)]
    kept = [leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind is not None]
    x, w, b = [leaf if kind is not None else None for leaf, kind in zip(leaves, kinds, strict=True)]
    assert x is not None
    wide: list[Any] = [None if tensor is None else tensor.detach().float().requires_grad_() for tensor in (x, w, b)]
    dy = torch.randn(rows, length).to(x.dtype)
    y = an.layer_norm(*wide)
    expected = [y, *torch.autograd.grad(y, [value for value in wide if value is not None], dy.float())]
    for _ in range(3):
        with watched() as jobs:
            y = an.layer_norm(x, w, b)
            found = [y, *torch.autograd.grad(y, kept, dy)]
        assert len(jobs) == 2
        with torch.no_grad():
            assert torch.equal(an.layer_norm(x, w, b), y)
        for result, exact, like in zip(found, expected, [x, *kept], strict=True):
            assert result.dtype == like.dtype
            torch.testing.assert_close(result, exact.to(result.dtype))


def test_half_precision_that_lies_otherwise() -> None:
    """Parameters with gaps, or of too many numbers to be kept cast, are cast one by one, to the same numbers."""
    x = torch.randn(6, 8).bfloat16()
    w, b = torch.randn(8).bfloat16(), torch.randn(8).bfloat16()
    y = [an.layer_norm(x, w, b) for _ in range(3)][-1]
    assert torch.equal(an.layer_norm(x, w.repeat_interleave(2)[::2], b.repeat_interleave(2)[::2]), y)
    from anynorm_torch import _cpu, _cpu_tensors

    with mock.patch.object(_cpu_tensors, "FEW", 4), _anew():
        an.layer_norm(x, w, b)
        with mock.patch.object(_cpu, "upcast", side_effect=AssertionError):
            for _ in range(2):
                assert torch.equal(an.layer_norm(torch.cat([x, x]), w, b)[:6], y)


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_freed_parameter_in_half_precision(which: str) -> None:
    """A weight or bias whose memory was freed is an error, not the end of the process."""
    x, w, b = [leaf.detach() for leaf in _leaves(*[torch.bfloat16] * 3)]
    for _ in range(3):
        an.layer_norm(x, w, b)
    {"weight": w, "bias": b}[which].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="freed"):
        an.layer_norm(x, w, b)


def test_weight_in_half_precision_must_not_change() -> None:
    """Though its cast copy is kept, a weight that changes before the backward pass is autograd's error."""
    leaves, dy = _leaves(*[torch.bfloat16] * 3), torch.randn(6, 8).bfloat16()
    for _ in range(3):
        y = an.layer_norm(*leaves)
        torch.autograd.grad(y, leaves, dy, retain_graph=True)
    with torch.no_grad():
        leaves[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize("gone", ["x", "weight", "dy"])
def test_freed_storage_where_the_formula_serves(gone: str) -> None:
    """A known call that the formula serves is refused as well: torch would read a freed storage and crash."""
    x, weight, dy = torch.ones(4, 6, 3), torch.ones(6), torch.ones(4, 6, 3)
    mean, var = torch.zeros(6, requires_grad=True), torch.ones(6)
    for _ in range(2):
        assert an.explain(an.batch_norm, x, weight=weight, mean=mean, var=var).path == "formula"
        _, pullback = an.vjp(an.batch_norm, x, weight=weight, mean=mean, var=var)
        pullback(dy)
    {"x": x, "weight": weight, "dy": dy}[gone].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="freed or cut"):
        pullback(dy)
    if gone != "dy":
        with pytest.raises(ValueError, match="freed or cut"):
            an.batch_norm(x, weight=weight, mean=mean, var=var)

"""How `anynorm.vjp` may be called and its pullback used: again, by many, lazily, traced. Numbers are test_vjp.py's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from gradients import NAMES, bits, cotangent, exact_gradients, pull, to_numpy, verify_gradients, vjp
from inputs import NORMS, Case, Norm, make_case
from layouts import LAYOUTS
from libraries import BOTH_NUMPY, EACH_WAY, LIBRARIES, ArrayLibrary, each_library

import anynorm as an
from anynorm_numba import _engine

BY_NAME = {norm.name: norm for norm in NORMS}

# A norm of each function, and what else is special: a bias of x's own shape, and no parameters.
REPEATED = (
    *[BY_NAME[name] for name in ("layer-modulated", "rms-leading", "group-last", "instance", "batch-given")],
    Norm("full-bias", "rms_norm", {}, {"weight": (3, 6, 5, 8), "bias": (3, 6, 5, 8)}),
    Norm("bare", "batch_norm"),
)


def each_repeated(*libraries: str) -> pytest.MarkDecorator:
    """Parametrize a test by `library` and `norm`; JAX and Dask, slow to meet a call, know two of the norms."""
    pairs = [
        pytest.param(library, norm, id=f"{library}-{norm.name}")
        for library in libraries
        for norm in (REPEATED if LIBRARIES[library].family not in ("jax", "dask") else REPEATED[3:6:2])
    ]
    return pytest.mark.parametrize(("library", "norm"), pairs, indirect=["library"])


@each_repeated(*EACH_WAY)
def test_pullback_again(library: ArrayLibrary, norm: Norm) -> None:
    """A pullback gives the same bits again, also after another dy, and changes none of the arguments."""
    case = make_case(norm, "float32")
    read_only = Case(norm, {name: LAYOUTS["read_only"](tensor) for name, tensor in case.arrays.items()})
    arrays = library.make_all(read_only.arrays)
    dy = library.make(LAYOUTS["read_only"](cotangent(case)))
    _, pullback = vjp(read_only, arrays)
    first = bits(to_numpy(pullback(dy), library))
    pullback(dy + dy)
    assert bits(to_numpy(pullback(dy), library)) == first
    assert library.to_numpy(dy).tobytes() == cotangent(case).tobytes()
    for name, tensor in arrays.items():
        assert library.to_numpy(tensor).tobytes() == case.arrays[name].tobytes()


@each_repeated(*BOTH_NUMPY, "torch", "strict_CPU_DEVICE", "cupy", "torch_cuda")
def test_gradients_are_new_arrays(library: ArrayLibrary, norm: Norm) -> None:
    """Gradients may be written to: they share no memory with dy, the arguments or each other."""
    case = make_case(norm, "float32")
    arrays = library.make_all({name: tensor.copy() for name, tensor in case.arrays.items()})
    dy = library.make(cotangent(case))
    y, pullback = vjp(case, arrays)
    expected = library.to_numpy(y).copy(), bits(to_numpy(pullback(dy), library))
    for array in (*pullback(dy), *pullback(dy)):
        if array is not None:
            array[...] = 7
    assert (library.to_numpy(y) == expected[0]).all()
    assert bits(to_numpy(pullback(dy), library)) == expected[1]
    assert library.to_numpy(dy).tobytes() == cotangent(case).tobytes()


@each_repeated(*EACH_WAY)
def test_no_change_of_y_asks_for_none(library: ArrayLibrary, norm: Norm) -> None:
    """Where dy is 0 everywhere, every gradient is exactly 0."""
    case = make_case(norm, "float32")
    found = pull(case, library, np.zeros_like(case.arrays["x"]))
    assert all(result is None or not result.any() for result in found)


@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in REPEATED[2:5]])
@each_library([name for name in EACH_WAY if name != "dask"])
def test_several_threads_share_a_pullback(library: ArrayLibrary, norm: Norm) -> None:
    """Called from several threads at once, a pullback gives each of them the gradients of its own dy."""
    case = make_case(norm, "float32")
    _, pullback = vjp(case, library.make_all(case.arrays))
    cotangents = [library.make(cotangent(case) * np.float32(factor)) for factor in (1, 2, -1, 0)]

    def bits_of(dy: Any) -> list[bytes | None]:
        with library.context():  # JAX's is a thread's own
            return bits(to_numpy(pullback(dy), library))

    expected = [bits_of(dy) for dy in cotangents]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(bits_of, cotangents * 4)) == expected * 4


@pytest.mark.parametrize("name", ["layer", "rms-leading", "group"])
@each_library([*BOTH_NUMPY, "torch", "strict_CPU_DEVICE"])
def test_parameters_by_position(library: ArrayLibrary, name: str) -> None:
    """Gradients of weight and bias come in their own place, whether they were passed by position, keyword or not."""
    case = make_case(BY_NAME[name], "float32")
    function, groups, options = getattr(an, case.norm.function), case.norm.groups, case.norm.options
    x, weight, bias, dy = [library.make(value) for value in (*case.arrays.values(), cotangent(case))]

    def gradients_of(*args: Any, **parameters: Any) -> list[bytes | None]:
        _, pullback = an.vjp(function, x, *groups, *args, **parameters, **options)
        return bits(to_numpy(pullback(dy), library))

    both = gradients_of(weight, bias)
    assert None not in both
    assert gradients_of(bias=bias, weight=weight) == both
    assert gradients_of(weight, bias=bias) == both
    assert gradients_of(weight) == gradients_of(weight, None) == [*both[:2], None]
    without = gradients_of(bias=bias)
    assert without == gradients_of(None, bias)
    assert without[1:] == [None, both[2]]
    assert gradients_of() == [without[0], None, None]


@pytest.mark.parametrize("name", ["batch", "instance"])
@each_library(EACH_WAY)
def test_moments_beside_y(library: ArrayLibrary, name: str) -> None:
    """With return_moments=True, vjp returns what the function returns; the gradients are the same as without."""
    case = make_case(BY_NAME[name], "float32")
    arrays, dy = library.make_all(case.arrays), library.make(cotangent(case))
    (y, moments), pullback = vjp(case, arrays, return_moments=True)
    plain_y, plain = case.function(return_moments=True)(arrays)
    assert isinstance(moments, an.Moments)
    assert moments.n == plain.n
    for one, other in ((y, plain_y), (moments.mean, plain.mean), (moments.m2, plain.m2)):
        assert library.to_numpy(one).tobytes() == library.to_numpy(other).tobytes()
    _, alone = vjp(case, arrays)
    assert bits(to_numpy(pullback(dy), library)) == bits(to_numpy(alone(dy), library))


@each_repeated("dask")
def test_dask_computes_nothing_yet(library: ArrayLibrary, norm: Norm) -> None:
    """Neither vjp nor its pullback computes a Dask graph; shapes and dtypes of the gradients are known before."""
    import dask

    def scheduler(*_: object, **__: object) -> None:
        raise AssertionError

    case = make_case(norm, "float32")
    dy = cotangent(case)
    with dask.config.set(scheduler=scheduler):
        _, pullback = vjp(case, library.make_all(case.arrays))
        found = pullback(library.make(dy))
    for name in NAMES:
        array = getattr(found, name)
        assert array is None or (array.shape, array.dtype) == (case.arrays[name].shape, case.arrays[name].dtype)
    verify_gradients(to_numpy(found, library), case, exact_gradients(case, dy))


@pytest.mark.feature("compiled")
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in REPEATED[1:5:3]])
@each_library(["jax"])
def test_jax_jit(library: ArrayLibrary, norm: Norm) -> None:
    """Inside jax.jit, vjp and its pullback keep the contract; so does a pullback jitted alone, or vectorized."""
    jax = pytest.importorskip("jax")
    case = make_case(norm, "float32")
    dy = cotangent(case)
    arrays, made, exact = library.make_all(case.arrays), library.make(dy), exact_gradients(case, dy)
    _, pullback = vjp(case, arrays)
    both = jax.jit(lambda tensor, along: vjp(case, tensor)[1](along))(arrays, made)
    alone = jax.jit(pullback)(made)
    several = jax.vmap(pullback)(jax.numpy.stack([made, 2 * made]))
    for found in (both, alone, jax.tree.map(lambda tensor: tensor[0], several)):
        assert type(found) is an.Gradients
        verify_gradients(to_numpy(found, library), case, exact)


@pytest.mark.feature("compiled")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in REPEATED[1:5:3]])
@each_library(["torch"])
def test_torch_compile(library: ArrayLibrary, norm: Norm) -> None:
    """torch.compile(fullgraph=True) takes vjp and its pullback into one graph, and the contract holds."""
    torch = pytest.importorskip("torch")
    case = make_case(norm, "float32")
    dy = cotangent(case)

    def step(arrays: Any, along: Any) -> Any:
        y, pullback = vjp(case, arrays)
        return y, pullback(along)

    torch.compiler.reset()
    y, found = torch.compile(step, fullgraph=True, backend="aot_eager")(library.make_all(case.arrays), library.make(dy))
    torch.compiler.reset()
    assert y.shape == dy.shape
    verify_gradients(to_numpy(found, library), case, exact_gradients(case, dy))


@pytest.mark.feature("vmap")
@pytest.mark.parametrize("norm", [pytest.param(norm, id=norm.name) for norm in REPEATED[1:5]])
@each_library(["torch"])
def test_torch_vmap(library: ArrayLibrary, norm: Norm) -> None:
    """torch.func.vmap over dy, and over everything, gives what a loop gives."""
    torch = pytest.importorskip("torch")
    cases = [make_case(norm, "float32", seed=seed) for seed in range(2)]
    dy = cotangent(cases[0])
    arrays = [library.make_all(case.arrays) for case in cases]
    stacked = {name: torch.stack([tensor[name] for tensor in arrays]) for name in arrays[0]}
    dys = torch.stack([library.make(dy)] * 2)
    over_all = torch.func.vmap(lambda tensor, along: vjp(cases[0], tensor)[1](along))(stacked, dys)
    over_dy = torch.func.vmap(vjp(cases[0], arrays[0])[1])(dys)
    for found, of in ((over_all, cases), (over_dy, cases[:1] * 2)):
        for i, case in enumerate(of):
            one = an.Gradients(*[None if result is None else result[i] for result in found])
            verify_gradients(to_numpy(one, library), case, exact_gradients(case, dy))


@pytest.mark.parametrize("enabled", [True, False])
def test_fast_paths_of_the_backward_pass(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fast paths off no backend computes the gradients either, whatever holds when the pullback is called."""
    called = []
    x = np.ones((2, 3), "float32")
    own = _engine.backward

    def watch(*args: Any, **options: Any) -> Any:
        called.append(True)
        return own(*args, **options)

    monkeypatch.setattr(_engine, "backward", watch)
    with an.fast_paths(enabled):
        _, pullback = an.vjp(an.layer_norm, x)
    pullback(x)
    assert called == [True] * enabled


def test_no_warning_of_what_is_a_result() -> None:
    """NumPy warns of no NaN, infinity or overflow in gradients, moments and statistics, as of none in results."""
    x = np.asarray([[1.0, 3.0], [-2.0, 5.0]], "float32")
    an.vjp(an.batch_norm, x, mean=x[0], var=-x[0])[1](x)
    an.vjp(an.layer_norm, x, np.ones(2, "float16"))[1](x * 1e30)
    an.BatchNorm(2)(x * 1e30)
    an.moments(x * 1e30)

"""torch tensors on a GPU, through the CUDA engine: streams, graphs, devices, threads, and torch's ways of calling."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import steps
from engine_forms import FORMS
from gradients import cotangent, exact_gradients, verify_gradients
from inputs import NORMS, make_case, verify
from libraries import LIBRARIES
from torch_on_device import explained, recorded

import anynorm as an
import anynorm_cuda

torch: Any = pytest.importorskip("torch")

CUDA = LIBRARIES["torch_cuda"]

if CUDA.missing() is not None:
    pytest.skip(str(CUDA.missing()), allow_module_level=True)

if torch.cuda.get_device_capability() < (8, 0) or anynorm_cuda.missing() is not None:
    pytest.skip(f"no CUDA engine for this device: {anynorm_cuda.missing()}", allow_module_level=True)

BY_NAME = {norm.name: norm for norm in NORMS}
EACH = ("layer", "rms", "group", "instance", "batch")
DTYPES = ("float32", "bfloat16", "float16")

CALLS: dict[str, Callable[..., Any]] = {
    "layer": lambda x, w, b: an.layer_norm(x, w, b),
    "group": lambda x, w, b: an.group_norm(x, 4, w, b),
    "batch": lambda x, w, b: an.batch_norm(x, weight=w, bias=b),
}


def leaves(rows: int = 64, length: int = 512, device: Any = "cuda", dtype: Any = torch.float32) -> list[Any]:
    """Return x, weight and bias that require gradients."""
    generator = torch.Generator().manual_seed(rows)
    own = [torch.randn(shape, generator=generator) for shape in ((rows, length), (length,), (length,))]
    return [tensor.to(device, dtype).requires_grad_() for tensor in own]


def passes(call: Callable[..., Any], own: list[Any]) -> list[Any]:
    """Return y and its gradients."""
    y = call(*own)
    dy = torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, own, dy)]


@pytest.mark.parametrize("form", ["rows", "batch-last"])
def test_steps(form: str) -> None:
    """Of sets in chunks the four steps apart, by the kernels on the device, leave the bits of the passes."""
    found = steps.passes(FORMS[form].case("float32", 4, 300_000), CUDA)
    assert found.engines == ("anynorm_cuda", "anynorm_cuda")
    steps.check_steps_are_one_pass(found, CUDA)


def same(found: list[Any], expected: list[Any]) -> None:
    """Raise unless the bits are the same."""
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def near(found: list[Any], expected: list[Any]) -> None:
    """Raise unless numbers are the same but for rounding."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EACH)
def test_norms(name: str, dtype: str) -> None:
    """Every norm is within the bounds on a device, and so are its gradients."""
    case = make_case(BY_NAME[name], dtype)
    arrays, dy = CUDA.make_all(case.arrays), cotangent(case)
    assert explained(case, arrays) == ("anynorm_cuda", None)
    y, found = recorded(case, arrays, CUDA.make(dy))
    verify(CUDA.to_numpy(y), case.arrays["x"], case.reference())
    gradients = an.Gradients(*[None if tensor is None else CUDA.to_numpy(tensor) for tensor in found])
    verify_gradients(gradients, case, exact_gradients(case, dy))


@pytest.mark.parametrize("length", [16000, 24000])
def test_long_rows(length: int) -> None:
    """Rows that take more shared memory than a kernel has unasked, or a cluster of blocks, are the engine's too."""
    own = leaves(8, length)
    explain: Any = an.explain
    assert explain(an.layer_norm, *own) == ("anynorm_cuda", None)
    expected = passes(CALLS["layer"], [tensor.detach().double().requires_grad_() for tensor in own])
    near([tensor.double() for tensor in passes(CALLS["layer"], own)], expected)


def test_current_stream() -> None:
    """Which stream is current torch says, in its own quick way as in the public one."""
    from anynorm_torch import _cuda

    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            assert _cuda._stream(0) == _cuda._stream_asked(0) == stream.cuda_stream


@pytest.mark.parametrize("call", CALLS)
def test_streams(call: str) -> None:
    """Kernels run on the current stream: after what was put there before, beside what other streams do."""
    own = leaves(4096, 1024)
    expected = passes(CALLS[call], own)
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    found = []
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # so that on another stream they would run before x is written
            x = own[0].detach().clone().requires_grad_()
            found.append(passes(CALLS[call], [x, *own[1:]]))
    torch.cuda.synchronize()
    for tensor in found:
        same(tensor, expected)


def test_pullback_on_another_stream() -> None:
    """Statistics that a pullback reads on a stream of its own are not given away while it does."""
    x, weight, bias = [tensor.detach() for tensor in leaves(512, 2048)]
    dy = torch.randn_like(x)
    expected = an.vjp(an.layer_norm, x, weight, bias)[1](dy)
    stream = torch.cuda.Stream()
    _, pullback = an.vjp(an.layer_norm, x, weight, bias)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        found = pullback(dy)
    del pullback
    for _ in range(50):  # what takes the memory that was freed
        torch.full((5, 512), torch.nan, device="cuda")
    torch.cuda.synchronize()
    same(list(found), list(expected))


@pytest.mark.parametrize("known", [True, False], ids=["loaded", "first-met"])
@pytest.mark.parametrize("call", CALLS)
def test_graphs(call: str, known: bool) -> None:
    """A CUDA graph captures both passes and replays them, also where it meets kernels that were never loaded."""
    length = 512 if known else 520 + 8 * list(CALLS).index(call)
    own = leaves(96, length)
    if known:
        passes(CALLS[call], own)
    else:
        for _ in range(2):  # autograd and the allocator want to be warm; the kernels are of other lengths
            passes(CALLS[call], leaves(96, 448))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        found = passes(CALLS[call], own)
    for factor in (1.0, -3.0):
        with torch.no_grad():
            own[0].mul_(factor)
        graph.replay()
        torch.cuda.synchronize()
        same(found, passes(CALLS[call], own))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_two_devices() -> None:
    """Tensors are served on their own device, whichever is current."""
    results = []
    for index in (0, 1):
        own = leaves(device=f"cuda:{index}")
        with torch.cuda.device(1 - index):
            found = passes(CALLS["layer"], own)
            assert torch.cuda.current_device() == 1 - index
        assert {tensor.device.index for tensor in found} == {index}
        results.append([tensor.cpu() for tensor in found])
    near(*results)


def test_threads() -> None:
    """Calls from several threads, each with lengths that no other has met, are those of one thread."""

    def many(first: int) -> list[Any]:
        with torch.cuda.stream(torch.cuda.Stream()):
            found = [passes(CALLS["layer"], leaves(33, length)) for length in range(first, first + 48, 16)]
            torch.cuda.current_stream().synchronize()
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(many, [600, 600, 602, 602, 604, 604, 606, 606]))
    for tensor, again in zip(found, [many(first) for first in (600, 600, 602, 602, 604, 604, 606, 606)], strict=True):
        for one, other in zip(tensor, again, strict=True):
            same(one, other)


def test_autocast() -> None:
    """Under autocast the arithmetic is what it is without; x may be of half precision beside float32 weights."""
    explain: Any = an.explain
    x, weight, bias = leaves()
    half = x.detach().bfloat16().requires_grad_()
    for own in ([x, weight, bias], [half, weight, bias]):
        expected = passes(CALLS["layer"], own)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert explain(an.layer_norm, *own).path == "anynorm_cuda"
            found = passes(CALLS["layer"], own)
        same(found, expected)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.filterwarnings("ignore")  # inductor warns of the settings and the age of torch's own parts
def test_compiled() -> None:
    """torch.compile fuses the formula, in one graph, forward and backward."""
    own = leaves()
    compiled = torch.compile(CALLS["layer"], fullgraph=True)
    near(passes(compiled, own), passes(CALLS["layer"], own))


def test_transforms() -> None:
    """torch.func transforms the formula."""
    x, weight, bias = [tensor.detach() for tensor in leaves()]
    expected = an.layer_norm(x, weight, bias)
    near([torch.func.vmap(lambda row: an.layer_norm(row, weight, bias))(x)], [expected])
    dx = torch.func.grad(lambda tensor: an.layer_norm(tensor, weight, bias).square().sum())(x)
    _, pullback = an.vjp(an.layer_norm, x, weight, bias)
    near([dx], [pullback(2 * expected).x])


def test_offloaded() -> None:
    """Saved tensors may spend the time between the passes on the host."""
    own = leaves()
    expected = passes(CALLS["layer"], own)
    with torch.autograd.graph.save_on_cpu():
        found = passes(CALLS["layer"], own)
    same(found, expected)


def test_same_bits() -> None:
    """The same call has the same bits, run after run, and nothing of what memory held before."""
    own = leaves(1000, 1000, dtype=torch.float16)
    expected = passes(CALLS["batch"], own)
    for _ in range(3):
        torch.full((4000, 1000), torch.nan, device="cuda")
        same(passes(CALLS["batch"], own), expected)

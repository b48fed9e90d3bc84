"""anynorm_torch.nn's layers, each beside torch's own of the same name and state: numbers, statistics, errors.

How else a layer may be called is test_torch_modules_ways.py's. Most compare in float64, where both sides are right to
rounding and a wrong term cannot hide.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
from torch_layers import SETUPS, Setup, check_states_agree, each_setup, one_of_each_kind

torch = pytest.importorskip("torch", reason="torch is not installed")

import anynorm_torch.nn  # noqa: E402  it imports torch

TRACKED = ("batch1d", "batch2d-cumulative", "batch3d", "instance1d-unbatched", "instance2d-tracked")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param("float64", {"rtol": 1e-10, "atol": 1e-12}, id="float64"),
        pytest.param("float32", {"rtol": 1e-4, "atol": 1e-5}, id="float32"),
    ],
)
@each_setup()
def test_twenty_steps(setup: Setup, dtype: str, tolerance: dict[str, float]) -> None:
    """Outputs, parameters and buffers stay torch's over twenty steps of training and evaluation with an optimizer."""
    kind = getattr(torch, dtype)
    layers = setup.pair(kind)
    optimizers = [
        torch.optim.SGD(value.parameters(), 0.05, momentum=0.9) for value in layers if list(value.parameters())
    ]
    dy = torch.linspace(-1, 1, setup.x().numel(), dtype=kind).reshape(setup.shape)
    for step in range(20):
        x = setup.x(step, kind)
        y, expected = [layer.train(step % 4 != 3)(x) for layer in layers]
        torch.testing.assert_close(y, expected, **tolerance)
        for optimizer, result in zip(optimizers, (y, expected), strict=False):
            optimizer.zero_grad()
            (result * dy).sum().backward()
            optimizer.step()
        check_states_agree(*layers, **tolerance)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@each_setup()
def test_gradients(setup: Setup, training: bool) -> None:
    """Gradients of x, weight and bias, and the gradients of those, are torch's."""
    results = []
    for layer in setup.pair(torch.float64):
        with torch.no_grad():  # statistics other than 0 and 1
            layer(setup.x(1, torch.float64))
        x = setup.x(dtype=torch.float64).requires_grad_()
        leaves = [x, *layer.parameters()]
        y = layer.train(training)(x)
        first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum([(gradient * gradient).sum() for gradient in first]), leaves)
        results.append([*first, *second])
    for mine, array in zip(*results, strict=True):
        torch.testing.assert_close(mine, array, rtol=1e-9, atol=1e-10)


@each_setup()
def test_is_torchs_layer(setup: Setup) -> None:
    """A layer is an instance of torch's class, prints as it does, and each loads the other's checkpoint."""
    ours, theirs = setup.pair()
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    ours(setup.x())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    check_states_agree(ours, theirs, rtol=0, atol=0)


def hostile(setup: Setup) -> Any:
    """Return float32 input of mean 1e6 and deviation 1; for RMS norm, which takes no mean off, of size 1e30."""
    noise = setup.x() - 3
    return noise * 1e30 if setup.cls == "RMSNorm" else noise / 2 + 1e6


@each_setup()
def test_hostile_input(setup: Setup) -> None:
    """Where torch's float32 is wrong in the third digit or worse, a layer in training is right to rounding."""
    ours, theirs = setup.pair()
    exact = copy.deepcopy(theirs).double()(hostile(setup).double())
    y, native = ours(hostile(setup)), theirs(hostile(setup))
    assert (y - exact).abs().max() < 2e-6
    assert (native - exact).abs().max() > 1e-3


@each_setup(*TRACKED)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_batch_that_is_not_finite(setup: Setup, value: float) -> None:
    """One NaN or infinity changes no running statistic and is not counted; the next batch is."""
    ours, theirs = setup.pair()
    for layer in (ours, theirs):
        layer(setup.x())
    spoilt = setup.x(1)
    spoilt.view(-1)[0] = value
    before = copy.deepcopy(ours)
    assert not ours(spoilt).isfinite().all()
    check_states_agree(ours, before, rtol=0, atol=0)
    for layer in (ours, theirs):
        layer(setup.x(2))
    check_states_agree(ours, theirs, rtol=1e-5, atol=1e-6)


@each_setup(*TRACKED)
def test_buffers_stay_the_same_tensors(setup: Setup) -> None:
    """Running statistics are updated in place, so that references to them stay valid."""
    ours, _ = setup.pair()
    references = dict(ours.named_buffers())
    before = {name: reference.clone() for name, reference in references.items()}
    ours(setup.x())
    assert all(named_buffer is references[name] for name, named_buffer in ours.named_buffers())
    assert not torch.equal(references["running_mean"], before["running_mean"])


@each_setup("batch2d", "batch2d-cumulative", "instance2d-tracked", "instance2d")
def test_empty_batch(setup: Setup) -> None:
    """An empty batch gives an empty result, moves no statistic and is not counted."""
    ours, _ = setup.pair()
    before = copy.deepcopy(ours)
    x = setup.x()[:0].requires_grad_()
    y = ours(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    check_states_agree(ours, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("cls", "arguments", "shape"),
    [
        pytest.param("BatchNorm1d", (4,), (2, 4, 3, 3), id="batch1d-4d"),
        pytest.param("BatchNorm2d", (4,), (2, 4, 3), id="batch2d-3d"),
        pytest.param("BatchNorm3d", (4,), (2, 4, 3, 3), id="batch3d-4d"),
        pytest.param("InstanceNorm1d", (4,), (4,), id="instance1d-1d"),
        pytest.param("InstanceNorm2d", (4,), (4, 3), id="instance2d-2d"),
        pytest.param("InstanceNorm3d", (4,), (2, 4, 3, 3, 3, 3), id="instance3d-6d"),
        pytest.param("InstanceNorm2d", (4, 1e-5, 0.1, True), (2, 5, 3, 3), id="instance2d-channels"),
    ],
)
def test_wrong_dimensions(cls: str, arguments: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    """Where torch's layer itself refuses a shape, ours does with the same class and words."""
    errors = []
    for module in (anynorm_torch.nn, torch.nn):
        with pytest.raises(ValueError, match="expected") as caught:
            getattr(module, cls)(*arguments)(torch.ones(shape))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    ("cls", "arguments", "shape", "words"),
    [
        pytest.param("LayerNorm", (4,), (2, 5), r"LayerNorm: .*\(2, 5\).*normalized_shape=\(4,\)", id="layer"),
        pytest.param("LayerNorm", ((4, 5), 1e-5, False), (5,), r"LayerNorm: .*\(5,\)", id="layer-1d"),
        pytest.param("RMSNorm", (4, None, False), (2, 5), r"RMSNorm: .*\(2, 5\)", id="rms"),
        pytest.param("GroupNorm", (2, 4), (2, 6, 3), "GroupNorm: .* has 6 channels .* made for 4", id="group-channels"),
        pytest.param(
            "GroupNorm", (2, 4, 1e-5, False), (2, 5, 3), "GroupNorm: .* has 5 channels .* made for 4", id="group-odd"
        ),
        pytest.param("BatchNorm1d", (4,), (3, 5), "BatchNorm1d: .* has 5 channels .* made for 4", id="batch-channels"),
        pytest.param("BatchNorm1d", (4, 1e-5, 0.1, False), (3, 5), "has 5 channels .* made for 4", id="batch-running"),
        pytest.param("BatchNorm1d", (4,), (1, 4), "one value per channel", id="batch-of-one"),
        pytest.param("InstanceNorm2d", (4,), (2, 4, 1, 1), "one value per sample and channel", id="instance-of-one"),
    ],
)
def test_input_that_does_not_fit(cls: str, arguments: tuple[Any, ...], shape: tuple[int, ...], words: str) -> None:
    """What torch's operators refuse is a ValueError in anynorm's words, and changes no state."""
    with pytest.raises((ValueError, RuntimeError)):
        getattr(torch.nn, cls)(*arguments)(torch.ones(shape))
    ours = getattr(anynorm_torch.nn, cls)(*arguments)
    before = copy.deepcopy(ours)
    with pytest.raises(ValueError, match=words):
        ours(torch.ones(shape))
    check_states_agree(ours, before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@each_setup("layer", "rms")
def test_nested_tensor(setup: Setup) -> None:
    """A nested tensor, which torch's layer norm takes, is a TypeError that says what to do."""
    nested = torch.nested.nested_tensor([torch.ones(2, 6), torch.ones(3, 6)])
    with pytest.raises(TypeError, match=r"nested tensor.*as_nested_tensor"):
        setup.pair()[0](nested)


def test_instance_norm_of_other_channels_warns() -> None:
    """An instance norm without parameters takes any number of channels, with torch's warning."""
    with pytest.warns(UserWarning, match="does not match num_features"):
        y = anynorm_torch.nn.InstanceNorm1d(4)(SETUPS["instance1d"].x())
    torch.testing.assert_close(y, torch.nn.InstanceNorm1d(5)(SETUPS["instance1d"].x()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_rms_eps_none(dtype: str) -> None:
    """eps=None is the machine epsilon of the dtype that is computed in, as in torch, where it decides the result."""
    x = torch.linspace(1e-4, 3e-4, 8, dtype=getattr(torch, dtype))
    ours, theirs = anynorm_torch.nn.RMSNorm(8, dtype=x.dtype), torch.nn.RMSNorm(8, dtype=x.dtype)
    torch.testing.assert_close(ours(x), theirs(x))
    assert 0.1 < ours(x).square().mean() < 0.5 or dtype == "float64"


@pytest.mark.parametrize("mixed", ["float16", "bfloat16", "float64"])
@one_of_each_kind
def test_float32_layer_on_other_dtypes(setup: Setup, mixed: str) -> None:
    """A float32 layer takes any dtype and returns it, computes in float32 at least, and keeps its own dtype."""
    ours, theirs = setup.pair()
    x = setup.x(dtype=getattr(torch, mixed))
    expected = theirs.double()(x.double())
    y = ours(x)
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=4 * torch.finfo(x.dtype).eps)
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
    check_states_agree(ours.double(), theirs, rtol=1e-6, atol=1e-6)


def without_buffers(layer: Any) -> Any:
    """Take a batch norm's running statistics off by hand."""
    layer.running_mean = layer.running_var = None
    return layer


@pytest.mark.parametrize(
    "take_off",
    [
        pytest.param(torch.func.replace_all_batch_norm_modules_, id="torch.func"),
        pytest.param(without_buffers, id="by-hand"),
    ],
)
def test_layer_without_buffers(take_off: Any) -> None:
    """A layer whose running statistics were taken off uses the batch's own, in both modes."""
    ours, theirs = [take_off(value) for value in SETUPS["batch2d"].pair()]
    for training in (True, False):
        y, expected = [layer.train(training)(SETUPS["batch2d"].x()) for layer in (ours, theirs)]
        torch.testing.assert_close(y, expected)


@each_setup("batch2d", "instance2d-tracked")
def test_statistics_get_no_gradient(setup: Setup) -> None:
    """Moving the running statistics is no step of the graph, even where someone has made one require a gradient."""
    ours, _ = setup.pair()
    ours.running_mean.requires_grad_()
    ours(setup.x()).square().sum().backward()
    assert ours.running_mean.any()
    assert ours.running_mean.grad is None


def test_average_of_statistics() -> None:
    """torch.optim.swa_utils.update_bn, which resets and averages running statistics, finds the layers."""
    loader = [SETUPS["batch2d"].x(seed) for seed in range(3)]
    layers = SETUPS["batch2d"].pair()
    for layer in layers:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.optim.swa_utils.update_bn(loader, layer)
    check_states_agree(*layers)
    assert layers[0].num_batches_tracked == 3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        anynorm_torch.nn.BatchNorm2d(6),
        anynorm_torch.nn.BatchNorm2d(6, affine=False),
        anynorm_torch.nn.GroupNorm(2, 6),
        anynorm_torch.nn.InstanceNorm2d(6, track_running_stats=True),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
def test_other_channels(layer: Any, training: bool) -> None:
    """Input of other channels than a layer was made for is said to be that, in the layer's name."""
    name = type(layer).__name__
    with pytest.raises(
        ValueError, match=rf"^{name}: input .* has 8 channels along axis 1, but the layer was made for 6"
    ):
        layer.train(training)(torch.randn(2, 8, 3, 3))
    layer.train(training)(torch.randn(2, 6, 3, 3))


def test_other_errors_stay() -> None:
    """An error of another cause than the channels is the function's own."""
    with pytest.raises(ValueError, match="has one value per channel"):
        anynorm_torch.nn.BatchNorm1d(6)(torch.randn(1, 6))

"""Calls in torch's words, by position and by keyword: the call that the refusal advises gives what torch's gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import anynorm

an: Any = anynorm  # called here with what its annotations forbid

ORDER = {
    "layer_norm": ("normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("normalized_shape", "weight", "eps"),
    "group_norm": ("num_groups", "weight", "bias", "eps"),
    "instance_norm": ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    "batch_norm": ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}
W, B = np.linspace(1, 2, 6, dtype="float32"), np.linspace(-1, 1, 6, dtype="float32")
MEAN, VAR = np.linspace(2, 4, 6, dtype="float32"), np.linspace(1, 3, 6, dtype="float32")


def refused(call: Any) -> str:
    """Return the message of the TypeError that a call must raise, in anynorm's words."""
    with pytest.raises(TypeError, match=r"^\w+: ") as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("norm", "given", "options"),
    [
        ("layer_norm", ((6,), W), {}),
        ("layer_norm", ((6,),), {"bias": B}),
        ("layer_norm", ((6,), W), {"eps": 0.1}),
        ("layer_norm", ((6,), W, B), {"eps": 0.1}),
        ("layer_norm", ((6,),), {"eps": 0.1}),
        ("layer_norm", ((6,),), {"weight": W, "bias": B, "eps": 0.1}),
        ("rms_norm", ((6,),), {"weight": W, "eps": 0.1}),
        ("layer_norm", ((6,), W), {"bias": B}),
        ("layer_norm", ([4, 6],), {"eps": 0.1}),
        ("layer_norm", (), {"normalized_shape": (6,)}),
        ("layer_norm", (), {"normalized_shape": (4, 6), "eps": 0.1}),
        ("layer_norm", (), {"normalized_shape": (6,), "weight": W, "bias": B}),
        ("rms_norm", ((6,), W), {"eps": 0.1}),
        ("rms_norm", ((6,),), {"eps": 0.1}),
        ("rms_norm", (), {"normalized_shape": (6,), "weight": W, "eps": 0.1}),
        ("group_norm", (), {"num_groups": 3}),
        ("group_norm", (), {"num_groups": 3, "weight": W, "bias": B, "eps": 0.1}),
        ("group_norm", (), {"num_groups": 3, "bias": B}),
        ("instance_norm", (None, None, W, B), {"eps": 0.1}),
        ("instance_norm", (None, None), {"weight": W, "bias": B}),
        ("instance_norm", (), {"use_input_stats": True}),
        ("instance_norm", (), {"use_input_stats": True, "weight": W, "eps": 0.1}),
        ("instance_norm", (MEAN, VAR, W, B, True), {"eps": 0.1}),
        ("instance_norm", (MEAN, VAR, W, B, False), {}),
        ("instance_norm", (MEAN, VAR), {"use_input_stats": False, "bias": B, "eps": 0.1}),
        ("instance_norm", (), {"running_mean": MEAN, "running_var": VAR, "use_input_stats": False}),
        ("batch_norm", (MEAN, VAR), {"weight": W, "bias": B, "eps": 0.1}),
        ("batch_norm", (MEAN, VAR, W, B), {"training": True}),
        ("batch_norm", (MEAN, VAR), {"weight": W, "training": True, "momentum": 0.3, "eps": 0.1}),
        ("batch_norm", (MEAN, VAR, W, B), {"training": False}),
        ("batch_norm", (), {"running_mean": MEAN, "running_var": VAR, "training": True, "bias": B}),
        ("batch_norm", (), {"running_mean": MEAN, "running_var": VAR}),
        ("batch_norm", (None, None), {"training": True}),
    ],
)
def test_torchs_words(norm: str, given: tuple[Any, ...], options: dict[str, Any]) -> None:
    """No argument is lost on the way: the advised call gives torch's result, and moves running statistics as torch."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    x = np.random.default_rng(2).normal(1, 2, (4, 6, 5)[: 3 if norm == "instance_norm" else 2]).astype("float32")
    function = getattr(an, norm)
    said = refused(lambda: function(x, *given, **options))
    assert refused(lambda: an.explain(function, x, *given, **options)) == said
    assert refused(lambda: an.vjp(function, x, *given, **options)) == said

    named = {**dict(zip(ORDER[norm], given, strict=False)), **options}
    codes = [
        value.rstrip(".") for value in said.replace(". With", ".\n").replace("call is ", "call is \n").split("\n")[1::2]
    ]
    # By position or by keyword cannot be told apart behind the shape, so both are said.
    code = codes[1] if len(codes) > 1 and "bias" in options else codes[0]
    found: dict[str, Any] = {"anynorm": anynorm, "x": x, **named}
    exec(code if code.startswith("y, ") else f"y = {code}", found)

    tensors = {
        key: torch.from_numpy(tensor.copy()) if isinstance(tensor, np.ndarray) else tensor
        for key, tensor in named.items()
    }
    if norm == "instance_norm":
        tensors = {"use_input_stats": True, **tensors}
    elif norm == "batch_norm":
        tensors = {"running_mean": None, "running_var": None, **tensors}
    expected = getattr(torch.nn.functional, norm)(torch.from_numpy(x), **tensors).numpy()
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-5)
    for name in ("running_mean", "running_var") if norm == "batch_norm" else ():
        if named.get(name) is not None:
            np.testing.assert_allclose(found[name], tensors[name].numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "given", "options", "said"),
    [
        ("layer_norm", (), {"dtype": "float32"}, "unknown keyword dtype"),
        ("layer_norm", (W, B, 1e-5), {}, "by keyword"),
        ("layer_norm", (), {"normalized_shape": (6,), "axis": 0}, "unknown keyword normalized_shape"),
        ("batch_norm", (), {"mean": MEAN, "var": VAR, "training": False}, "unknown keyword training"),
        ("batch_norm", (MEAN, VAR, W, B, np.ones(6)), {}, "by keyword"),
        ("batch_norm", (W,), {}, "by keyword"),
        ("batch_norm", (MEAN, VAR, W), {"weight": W}, "by keyword"),
        ("group_norm", (), {}, "num_groups is missing"),
        ("group_norm", (3,), {"num_groups": 3}, "unknown keyword num_groups"),
    ],
)
def test_no_words_of_torchs(norm: str, given: tuple[Any, ...], options: dict[str, Any], said: str) -> None:
    """Where the arguments are no call of torch's, none is advised."""
    found = refused(lambda: getattr(an, norm)(np.ones((4, 6), "float32"), *given, **options))
    assert said in found
    assert "call is" not in found


X = np.random.default_rng(5).normal(1, 2, (4, 6, 6)).astype("float32")


@pytest.mark.parametrize("flag", ["training", "is_training", "use_running_average"])
@pytest.mark.parametrize("given", [{}, {"mean": MEAN, "var": VAR}], ids=["measured", "given"])
@pytest.mark.parametrize("value", [False, True])
def test_flags_of_batch_norm(flag: str, given: dict[str, Any], value: bool) -> None:
    """A flag that contradicts the statistics is not merely left out, which would do the other thing."""
    said = refused(lambda: an.batch_norm(X, **given, **{flag: value}))
    by_batch = value != (flag == "use_running_average")
    assert ("give mean= and var=" in said) == (not by_batch and not given)
    assert ("leave out" in said and f"{flag}, mean and var" in said) == (by_batch and bool(given))
    assert ("the same call is anynorm.batch_norm(x)." in said) == (flag == "training" and by_batch and not given)


def test_flags_of_instance_norm() -> None:
    """Instance norm never takes statistics: the function that does is named."""
    for options in ({"use_input_stats": False}, {"training": False}):
        said = refused(lambda: an.instance_norm(X, **options))  # noqa: B023
        assert "anynorm.batch_norm(x, mean=..., var=...)" in said


@pytest.mark.parametrize(
    ("norm", "given", "options", "own"),
    [
        ("layer_norm", (), {"gamma": W, "beta": B}, {"weight": W, "bias": B}),
        ("layer_norm", (), {"scale": W, "epsilon": 0.1}, {"weight": W, "eps": 0.1}),
        ("layer_norm", (), {"dim": 1}, {"axis": 1}),
        ("layer_norm", (), {"channel_axis": 1}, {"axis": 1}),
        ("batch_norm", (), {"axis": -1}, {"channel_axis": -1}),
        ("batch_norm", (), {"running_mean": MEAN, "moving_variance": VAR}, {"mean": MEAN, "var": VAR}),
        ("group_norm", (3,), {"axis": -1, "offset": B}, {"channel_axis": -1, "bias": B}),
        ("moments", (), {"dim": 1, "keepdim": True}, {"axis": 1, "keepdims": True}),
    ],
)
def test_other_words(norm: str, given: tuple[Any, ...], options: dict[str, Any], own: dict[str, Any]) -> None:
    """Each keyword of another library's is answered by ours, with which the call is one."""
    said = refused(lambda: getattr(an, norm)(X, *given, **options))
    for word, tensor in zip(options, own, strict=True):
        assert f"{word} is {tensor} here" in said
    getattr(an, norm)(X, *given, **own)


@pytest.mark.parametrize(
    ("norm", "given", "options", "said"),
    [
        ("group_norm", (X,), {"groups": 2}, "groups is num_groups here, which goes by position."),
        ("group_norm", (X, 2), {"groups": 2}, "groups is num_groups here, and given as well: leave out one."),
        ("layer_norm", (), {"input": X}, "input is x here, which goes by position."),
        ("layer_norm", (X,), {"gamma": W, "weight": W}, "gamma is weight here, and given as well: leave out one."),
        (
            "layer_norm",
            (X, (6,)),
            {"gamma": W},
            "gamma is weight here. weight is given by keyword, and by position unless",
        ),
        ("layer_norm", (X,), {"scale": False}, "Leave out scale, or give what there is: weight, bias, axis, eps, out."),
        (
            "layer_norm",
            (X,),
            {"epsilon": 0.1, "dtype": 1},
            "epsilon is eps here. unknown keyword dtype. Leave out dtype",
        ),
        ("moments", (X, 0), {}, "Give the others by keyword, e.g. axis=..."),
    ],
)
def test_other_words_that_clash(norm: str, given: tuple[Any, ...], options: dict[str, Any], said: str) -> None:
    """A word of another library's whose place is taken, goes by position or means something else is no renaming."""
    assert said in refused(lambda: getattr(an, norm)(*given, **options))


def test_own_keywords_stay() -> None:
    """Keywords of anynorm's beside torch's order are in the advised call."""
    x = np.random.default_rng(1).normal(size=(4, 5, 6)).astype("float32")
    said = refused(lambda: an.group_norm(x, 3, W, B, 0.1, channel_axis=-1, batch_axis=None, out=x))
    code = said.partition("call is ")[2].rstrip(".")
    out = np.empty_like(x)
    names = {"anynorm": anynorm, "x": x, "num_groups": 3, "weight": W, "bias": B, "eps": 0.1, "out": out}
    y = eval(code, names | {"channel_axis": -1, "batch_axis": None})
    assert y is out
    np.testing.assert_array_equal(y, an.group_norm(x, 3, W, B, channel_axis=-1, batch_axis=None, eps=0.1))


def test_eps_of_rms_norm() -> None:
    """Where torch's eps differs from anynorm's and none is given, the message says so."""
    for options in ({}, {"weight": W}):
        assert "machine epsilon" in refused(lambda: an.rms_norm(W, normalized_shape=(6,), **options))  # noqa: B023
    assert "machine epsilon" in refused(lambda: an.rms_norm(W, (6,)))
    assert "machine epsilon" not in refused(lambda: an.rms_norm(W, (6,), eps=0.1))


LAYERS = {
    "LayerNorm": (6,),
    "RMSNorm": (6,),
    "GroupNorm": (3, 6),
    **{f"{kind}Norm{ndim}d": (6,) for kind in ("Batch", "Instance") for ndim in (1, 2, 3)},
}


@pytest.mark.parametrize("name", LAYERS)
def test_modules(name: str) -> None:
    """A module that is given no tensor says so in its own name; what is advised gives its result."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    layers: Any = pytest.importorskip("anynorm_torch.nn")
    layer = getattr(layers, name)(*LAYERS[name])
    shape = (4, 6, *[3] * int(name[-2])) if name.endswith("d") else (4, 6)
    numbers = np.random.default_rng(3).normal(size=shape)
    for training in (True, False):
        layer.train(training)
        for wrong in (numbers, numbers.tolist(), None):
            said = refused(lambda: layer(wrong))  # noqa: B023
            assert said.startswith(f"{name}: input must be a tensor")
    said = refused(lambda: layer(numbers))
    code = "torch.as_tensor(input, dtype=torch.float32)"
    assert code in said
    assert layer(eval(code, {"torch": torch, "input": numbers})).shape == shape

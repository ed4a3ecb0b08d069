"""What every network promises: model(x, c_noise, cond) -> [B, out_channels, ...], whatever is inside."""

import pytest
import torch
from networks import awake

from triptych.model import MLP, NCSN, DiT, NCSNpp, NCSNv2, UNet

FIR = (1, 3, 3, 1)
NETWORKS = {
    "unet": lambda n: UNet(3, 3, 8, 32, (1, 2), 1, (4,), num_classes=n),
    "adm": lambda n: UNet(
        3, 6, 8, 32, (1, 2), 1, (4,), head_channels=16, scale_shift=True, resample="resblock", num_classes=n
    ),
    "ddpmpp": lambda n: NCSNpp(3, 3, 8, 16, (1, 2), 1, (4,), num_classes=n),
    "ncsnpp": lambda n: NCSNpp(3, 3, 8, 16, (1, 2), 1, (4,), **_fourier("residual", "standard"), num_classes=n),
    "ncsnpp_256": lambda n: NCSNpp(3, 3, 8, 16, (1, 2), 1, (4,), **_fourier("skip", "skip"), num_classes=n),
    "ncsnpp_residual": lambda n: NCSNpp(
        3, 3, 8, 16, (1, 2), 1, (4,), **_fourier("residual", "residual"), num_classes=n
    ),
    "dit": lambda n: DiT(3, 6, 8, 2, 32, 2, 4, num_classes=n),
    "mlp": lambda n: MLP(2, 2, 32, 2, num_classes=n),
}
UNCONDITIONAL = {
    "ncsn": lambda n: NCSN(3, 3, 8, levels=10, channels=8),
    "ncsnv2": lambda n: NCSNv2(3, 3, 16, channels=8, multipliers=(1, 2, 2, 2, 4, 4)),
}
EVERY = NETWORKS | UNCONDITIONAL
SHARED = ("unet", "adm", "dit", "mlp")


def _fourier(encoder, decoder):
    return {"embedding": "fourier", "encoder": encoder, "decoder": decoder, "taps": FIR}


def build(name, num_classes=0, asleep=False):
    """The network in eval mode; asleep: as it is made, with weights that are zero."""
    torch.manual_seed(0)
    model = EVERY[name](num_classes).eval()
    return model if asleep else awake(model)


def inputs(model, batch=4):
    side = 16 if isinstance(model, NCSNv2) else 8
    shape = (batch, 2) if isinstance(model, MLP) else (batch, 3, side, side)
    return torch.randn(shape), torch.arange(batch).float() * 2


@pytest.mark.parametrize("name", EVERY)
def test_shape_dtype_and_attributes(name):
    model = build(name)
    x, c_noise = inputs(model)
    out = model(x, c_noise)
    assert out.shape == (len(x), model.out_channels, *x.shape[2:]) and out.dtype == torch.float32
    assert (model.in_channels, model.num_classes) == (x.shape[1], 0)
    assert hasattr(model, "noise_range") == (name in SHARED)


@pytest.mark.parametrize("name", NETWORKS)
def test_starts_at_zero(name):
    model = build(name, asleep=True)
    assert not model(*inputs(model)).any()


@pytest.mark.parametrize("name", EVERY)
def test_a_sample_does_not_see_the_others(name):
    model = build(name).double()
    x, c_noise = (a.double() for a in inputs(model))
    torch.testing.assert_close(model(x, c_noise)[1:2], model(x[1:2], c_noise[1:2]), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", EVERY)
def test_noise_level_matters_except_to_ncsnv2(name):
    model = build(name)
    x, c_noise = inputs(model)
    same = torch.equal(model(x, c_noise), model(x, c_noise + 1))
    assert same == (name == "ncsnv2")


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_matter_and_minus_one_is_none(name):
    model = build(name, num_classes=3)
    x, c_noise = inputs(model)
    label = torch.tensor([0, 1, 2, -1])
    out, null = model(x, c_noise, label), model(x, c_noise, None)
    torch.testing.assert_close(model(x, c_noise, torch.full((4,), -1)), null)
    torch.testing.assert_close(out[3], null[3])
    assert all((out[i] - null[i]).abs().max() > 1e-3 for i in range(3))
    assert (model(x, c_noise, label.roll(1)) - out).abs().flatten(1).max(1).values.gt(1e-3).all()
    assert torch.equal(model(x, c_noise, {"label": label}), out)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_label_that_is_no_class_is_an_error(name):
    model = build(name, num_classes=3)
    with pytest.raises(IndexError):
        model(*inputs(model, 1), torch.tensor([3]))


@pytest.mark.parametrize("name", EVERY)
def test_unconditional_network_refuses_labels(name):
    model = build(name)
    with pytest.raises(ValueError, match="unconditional network"):
        model(*inputs(model), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("name", EVERY)
def test_gradient_reaches_every_parameter(name):
    model = build(name, num_classes=3 if name in NETWORKS else 0).train()
    x, c_noise = inputs(model)
    label = torch.tensor([0, 1, 2, -1]) if name in NETWORKS else None
    model(x, c_noise, label).square().mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", EVERY)
def test_bfloat16_autocast_stays_close_and_returns_float32(name):
    model = build(name)
    x, c_noise = inputs(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, c_noise)
    exact = model(x, c_noise)
    assert out.dtype == torch.float32
    assert (out - exact).norm() < 0.1 * exact.norm()  # three significant figures, some twenty layers


@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings_are_float32_under_autocast(name):
    """T-D8: c_noise up to 1000 has no meaning in bfloat16, whose spacing there is 4."""
    model = build(name)
    seen = []
    model.time.register_forward_hook(lambda _, __, out: seen.append(out))
    x, c_noise = inputs(model)
    model(x, c_noise)
    with torch.autocast("cpu", torch.bfloat16):
        model(x, c_noise)
    assert seen[1].dtype == torch.float32 and torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("noise_range", [(0.0, 1.0), (-4.6, 3.9), (-1.6, 1.1)])
def test_shared_backbones_tell_noise_levels_apart(name, noise_range):
    """T-L7: without the rescaling, the sinusoids of t in [0, 1] span hardly more than a line and a constant."""
    model = build(name)
    seen = []
    model.embedding.register_forward_hook(lambda _, __, out: seen.append(out))
    x, _ = inputs(model, 64)
    c_noise = torch.linspace(*noise_range, 64)
    for model.noise_range in (noise_range, None):
        model(x, c_noise)
    rescaled, flat = (torch.linalg.svdvals(e.double()) for e in seen)
    assert (rescaled > 0.01 * rescaled[0]).sum() >= 12
    assert (rescaled > 0.01 * rescaled[0]).sum() >= 2 * (flat > 0.01 * flat[0]).sum()


@pytest.mark.parametrize("name", ["unet", "ncsnpp", "dit", "ncsn", "ncsnv2"])
def test_checkpointing_changes_no_gradient_and_keeps_less(name):
    model = build(name).train()
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5  # the recomputed pass must draw the same mask
    x, c_noise = inputs(model)
    weights = {p.data_ptr() for p in model.parameters()}
    grads, kept = [], []

    def pack(tensor):
        kept[-1] += tensor.numel() * (tensor.data_ptr() not in weights)
        return tensor

    network = model.network if hasattr(model, "network") else model
    for network.checkpointing in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(x, c_noise).square().mean()
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*grads)
    assert kept[1] < kept[0] / 4


@pytest.mark.parametrize("name", ["unet", "adm", "ddpmpp", "ncsnpp", "ncsnv2"])
def test_channels_last_gives_the_same(name):
    model = build(name)
    x, c_noise = inputs(model)
    out = model(x, c_noise)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last), c_noise), out, atol=2e-4, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.filterwarnings("ignore")
def test_compiles_into_one_graph(name):
    torch._dynamo.reset()
    model = build(name, num_classes=3 if name in NETWORKS else 0).train()
    x, c_noise = inputs(model)
    label = torch.tensor([0, 1, 2, -1]) if name in NETWORKS else None
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c_noise, label), model(x, c_noise, label), atol=1e-4, rtol=1e-4)

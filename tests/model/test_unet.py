"""The U-Net's operators, norms, dropout and initial weights (test_against_diffusers has its equality with a peer)."""

import pytest
import torch
from counting import Count

from triptych.model import UNet
from triptych.model.norm import group_norm


def test_operators_of_a_training_step():
    """A step may take 700 (diffusers: 967 before its optimizer), and read no scalar back."""
    model = UNet(3, 3, 32, channels=32)  # as many operators as with 128 channels
    x, index = torch.randn(2, 3, 32, 32), torch.tensor([0.0, 617.0])
    with Count() as forward:
        loss = model(x, index).mean()
    with Count() as backward:
        loss.backward()
    assert forward.seen["convolution"] == 77  # the count does see the network
    assert forward.total() <= 285
    assert forward.total() + backward.total() <= 580
    assert forward.seen["_local_scalar_dense"] + backward.seen["_local_scalar_dense"] == 0


def test_labels_add_few_operators_and_no_scalar_read():
    model = UNet(3, 3, 8, 32, (1, 2), 1, (), num_classes=10)
    x, index = torch.randn(2, 3, 8, 8), torch.tensor([0.0, 617.0])
    label = torch.tensor([3, -1])
    with Count() as without:
        model(x, index)
    with Count() as labelled:
        model(x, index, label)
    assert labelled.total() - without.total() <= 6
    assert labelled.seen["_local_scalar_dense"] == 0


def test_group_norm_keeps_float32_statistics():
    """T-D8: the mean of bfloat16 pixels around 100, whose spacing is 0.5, is known far better than that."""
    torch.manual_seed(0)
    norm = group_norm(32)
    x = (100 + torch.randn(2, 32, 8, 8)).bfloat16()
    exact = torch.nn.functional.group_norm(x.double(), norm.num_groups, eps=norm.eps)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    torch.testing.assert_close(out.double(), exact, atol=0.01, rtol=0.01)  # the rounding of the result alone


@pytest.mark.parametrize("channels, groups", [(128, 32), (192, 32), (32, 8), (96, 24), (20, 5), (3, 1), (144, 24)])
def test_groups(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_initial_weights_have_the_variance_of_ddpm():
    """1 / fan_avg for each product, also for those that share one tensor; each branch ends in zeros."""
    torch.manual_seed(0)
    model = UNet(3, 3, 32, attention=(32,))
    qkv = model.down[0].attention.qkv.weight
    torch.testing.assert_close(qkv.var(), torch.tensor(1 / 128), rtol=0.03, atol=0)
    first = model.project.linear.weight[:128]
    torch.testing.assert_close(first.var(), torch.tensor(2 / (512 + 128)), rtol=0.03, atol=0)
    conv = model.down[1].conv1.weight
    torch.testing.assert_close(conv.var(), torch.tensor(1 / (9 * 128)), rtol=0.03, atol=0)
    for block in (model.down[0], model.middle[0]):
        assert not block.conv2.weight.any() and not block.attention.output.weight.any()
    assert not model.output.weight.any()


def test_scale_shift_is_norm_times_one_plus_scale_plus_shift():
    """AdaGN, arXiv:2105.05233, Eq. of section 3.1, with (y_s, y_b) the scale and the shift, in this order."""
    torch.manual_seed(0)
    block = UNet(3, 3, 8, 32, (1,), 1, (), scale_shift=True).down[0]
    x, time = torch.randn(2, 32, 8, 8), torch.randn(2, 64, 1, 1)
    h = block.conv1(torch.nn.functional.silu(block.norm1(x)))
    scale, shift = time[:, :32], time[:, 32:]
    expected = torch.nn.functional.silu(block.norm2(h) * (1 + scale) + shift)
    seen = []
    block.conv2.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    block.eval()(x, time)
    torch.testing.assert_close(seen[0], expected)


def test_dropout_has_its_rate_and_only_in_training():
    torch.manual_seed(0)
    block = UNet(3, 3, 32, 32, (1,), 1, (), dropout=0.3).down[0]
    seen = []
    block.conv2.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    x, time = torch.randn(4, 32, 32, 32), torch.zeros(4, 32, 1, 1)
    block.train()(x, time)
    block.eval()(x, time)
    dropped = seen[0] == 0
    assert abs(dropped.float().mean() - 0.3) < 0.01
    torch.testing.assert_close(seen[0][~dropped], (seen[1] / 0.7)[~dropped])

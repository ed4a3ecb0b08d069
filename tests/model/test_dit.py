"""What is DiT's own: blocks that start as the identity, positions, patches."""

import math

import torch
from torch import nn

from triptych.model import DiT
from triptych.model.dit import Block, _positions


def test_blocks_start_as_the_identity():
    """adaLN-Zero: every gate, shift and scale is zero at first."""
    torch.manual_seed(0)
    model = DiT(3, 3, 8, 2, 32, 2, 4)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    model(torch.randn(2, 3, 8, 8), torch.tensor([3.0, 900.0]))
    assert len(seen) == 2
    for before, after in seen:
        assert torch.equal(before, after)


def test_attention_is_softmax_over_tokens_by_head():
    """Against torch's own multi-head attention with the same weights, with gates that leave the MLP out."""
    torch.manual_seed(0)
    block = Block(32, heads=4)
    peer = nn.MultiheadAttention(32, 4, batch_first=True)
    peer.in_proj_weight.data.copy_(block.qkv.weight)
    peer.in_proj_bias.data.copy_(block.qkv.bias)
    peer.out_proj.load_state_dict(block.project.state_dict())
    x = torch.randn(2, 9, 32)
    zero, gate = torch.zeros(2, 1, 32), torch.randn(2, 1, 32)
    out = block(x, zero, zero, gate, zero, zero, zero)
    h = nn.functional.layer_norm(x, (32,), eps=1e-6)
    torch.testing.assert_close(out, x + gate * peer(h, h, h)[0])


def test_positions_are_sines_and_cosines_of_column_and_row():
    side, channels = 5, 16
    positions = _positions(side, channels)
    for row in range(side):
        for column in range(side):
            expected = []
            for coordinate in (column, row):
                angles = [coordinate / 10_000 ** (i / 4) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(positions[row * side + column], torch.tensor(expected))


def test_a_token_writes_its_own_patch():
    """With depth 0 the network acts on each patch alone: a change of one patch shows there and nowhere else."""
    torch.manual_seed(0)
    model = DiT(1, 2, 8, patch=4, hidden=32, depth=0, heads=4)
    nn.init.normal_(model.output.weight)
    x = torch.randn(1, 1, 8, 8)
    changed = x.clone()
    changed[:, :, 4:, :4] += 1
    difference = (model(changed, torch.zeros(1)) - model(x, torch.zeros(1))).abs().amax((0, 1))
    assert difference[4:, :4].min() > 0
    assert not difference[:4].any() and not difference[:, 4:].any()

"""Our networks against diffusers' with the same weights, none left out: same structure, same order, same arithmetic."""

import math

import pytest
import torch

from triptych.model import DiT, NCSNpp, UNet
from triptych.model.embedding import SinusoidalEmbedding
from triptych.model.unet import Upsample

pytestmark = pytest.mark.slow  # importing diffusers takes seconds
diffusers = pytest.importorskip("diffusers")


def blank(model):
    """A weight that is not copied shows as nan."""
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    return model.eval()


def copy(ours, theirs):
    ours.weight.data.copy_(theirs.weight.reshape(ours.weight.shape))
    ours.bias.data.copy_(theirs.bias)


def copy_attention(ours, theirs):
    copy(ours.norm, theirs.group_norm)
    parts = (theirs.to_q, theirs.to_k, theirs.to_v)
    ours.qkv.weight.data.copy_(torch.cat([p.weight for p in parts])[..., None, None])
    ours.qkv.bias.data.copy_(torch.cat([p.bias for p in parts]))
    copy(ours.output, theirs.to_out[0])


def copy_block(ours, theirs, attention=None):
    copy(ours.norm1, theirs.norm1)
    copy(ours.conv1, theirs.conv1)
    copy(ours.norm2, theirs.norm2)
    copy(ours.conv2, theirs.conv2)
    assert (ours.skip is None) == (theirs.conv_shortcut is None)
    if ours.skip is not None:
        copy(ours.skip, theirs.conv_shortcut)
    assert (ours.attention is None) == (attention is None)
    if attention is not None:
        copy_attention(ours.attention, attention)
    return theirs.time_emb_proj


def copy_unet(ours, theirs):
    copy(ours.input, theirs.conv_in)
    copy(ours.time[0], theirs.time_embedding.linear_1)
    copy(ours.time[2], theirs.time_embedding.linear_2)
    times, down, up = [], iter(ours.down), iter(ours.up)
    for i, level in enumerate(theirs.down_blocks):
        attentions = getattr(level, "attentions", [None] * len(level.resnets))
        times += [copy_block(next(down), r, a) for r, a in zip(level.resnets, attentions, strict=True)]
        if i < 3:
            copy(next(down), level.downsamplers[0].conv)
    first, second = theirs.mid_block.resnets
    times += [copy_block(ours.middle[0], first, theirs.mid_block.attentions[0]), copy_block(ours.middle[1], second)]
    for i, level in enumerate(theirs.up_blocks):
        attentions = getattr(level, "attentions", [None] * len(level.resnets))
        times += [copy_block(next(up), r, a) for r, a in zip(level.resnets, attentions, strict=True)]
        if i < 3:
            upsample = next(up)
            assert isinstance(upsample, Upsample)
            copy(upsample.conv, level.upsamplers[0].conv)
    ours.project.linear.weight.data.copy_(torch.cat([t.weight for t in times]))
    ours.project.linear.bias.data.copy_(torch.cat([t.bias for t in times]))
    copy(ours.norm, theirs.conv_norm_out)
    copy(ours.output, theirs.conv_out)


def test_ddpm_unet():
    torch.manual_seed(0)
    down, attention = "DownBlock2D", "AttnDownBlock2D"
    peer = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=(down, attention, down, down),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
    ).eval()
    model = blank(UNet(3, 3, 32))
    copy_unet(model, peer)
    x, index = torch.randn(2, 3, 32, 32), torch.tensor([0.0, 617.0])
    with torch.no_grad():
        torch.testing.assert_close(model(x, index), peer(x, index).sample, atol=2e-5, rtol=2e-5)


def copy_ncsnpp(ours, theirs):
    copy(ours.input, theirs.conv_in)
    ours.embedding.frequencies.copy_(theirs.time_proj.weight)
    copy(ours.time[0], theirs.time_embedding.linear_1)
    copy(ours.time[2], theirs.time_embedding.linear_2)
    times, pending, levels = [], [], len(theirs.down_blocks)
    for i, level in enumerate(theirs.down_blocks):
        attentions = getattr(level, "attentions", [None] * len(level.resnets))
        peers = [*pending, *zip(level.resnets, attentions, strict=True)]
        times += [copy_block(o, r, a) for o, (r, a) in zip(ours.down[i], peers, strict=True)]
        pending = [(level.resnet_down, None)]
        if i < levels - 1:
            copy(ours.enter[i], level.skip_conv)
    first, second = theirs.mid_block.resnets
    times += [copy_block(ours.middle[0], first, theirs.mid_block.attentions[0]), copy_block(ours.middle[1], second)]
    pending = []
    for i, level in enumerate(theirs.up_blocks):
        attentions = [None] * (len(level.resnets) - 1) + [getattr(level, "attentions", [None])[0]]
        peers = [*pending, *zip(level.resnets, attentions, strict=True)]
        times += [copy_block(o, r, a) for o, (r, a) in zip(ours.up[i], peers, strict=True)]
        pending = [(level.resnet_up, None)]
        last = i == levels - 1
        copy(ours.leave[i].norm, theirs.conv_norm_out if last else level.skip_norm)
        copy(ours.leave[i].conv, theirs.conv_out if last else level.skip_conv)
    ours.project.linear.weight.data.copy_(torch.cat([t.weight for t in times]))
    ours.project.linear.bias.data.copy_(torch.cat([t.bias for t in times]))


def test_ncsnpp():
    """The NCSN++ of 256 x 256 images (google/ncsnpp-ffhq-256), with three levels: FIR, input skip, output skip."""
    torch.manual_seed(0)
    peer = diffusers.UNet2DModel(
        sample_size=32,
        time_embedding_type="fourier",
        block_out_channels=(128, 256, 128),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        mid_block_scale_factor=math.sqrt(2),
        attention_head_dim=None,
        norm_eps=1e-6,
        norm_num_groups=None,
    ).eval()
    skips = {"embedding": "fourier", "encoder": "skip", "decoder": "skip", "taps": (1, 3, 3, 1)}
    model = blank(NCSNpp(3, 3, 32, 128, (1, 2, 1), 2, (16,), **skips))
    copy_ncsnpp(model, peer)
    x, sigma = torch.randn(2, 3, 32, 32), torch.tensor([0.3, 4.0])
    with torch.no_grad():
        expected = peer(x, sigma).sample * sigma.view(-1, 1, 1, 1)  # it divides by sigma itself
        torch.testing.assert_close(model(x, sigma.log()), expected, atol=2e-4, rtol=2e-4)


def test_dit():
    torch.manual_seed(0)
    peer = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()
    first = peer.transformer_blocks[0].norm1.emb
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for block in peer.transformer_blocks[1:]:  # ours embeds time and class once for all blocks
            block.norm1.emb.load_state_dict(first.state_dict())
    model = blank(DiT(3, 6, 8, 2, 32, 2, 4, num_classes=10))
    model.embedding = SinusoidalEmbedding(256)  # diffusers' frequencies, not the paper's
    copy(model.tokens, peer.pos_embed.proj)
    weight = first.timestep_embedder.linear_1.weight
    model.time[0].weight.data.copy_(weight.roll(128, dims=1))  # sines first
    model.time[0].bias.data.copy_(first.timestep_embedder.linear_1.bias)
    copy(model.time[2], first.timestep_embedder.linear_2)
    table = first.class_embedder.embedding_table.weight
    model.label.table.weight.data.copy_(table[:10])
    model.label.null.data.copy_(table[10])
    parts = [block.norm1.linear for block in peer.transformer_blocks] + [peer.proj_out_1]
    model.modulation.weight.data.copy_(torch.cat([p.weight for p in parts]))
    model.modulation.bias.data.copy_(torch.cat([p.bias for p in parts]))
    for ours, theirs in zip(model.blocks, peer.transformer_blocks, strict=True):
        qkv = (theirs.attn1.to_q, theirs.attn1.to_k, theirs.attn1.to_v)
        ours.qkv.weight.data.copy_(torch.cat([p.weight for p in qkv]))
        ours.qkv.bias.data.copy_(torch.cat([p.bias for p in qkv]))
        copy(ours.project, theirs.attn1.to_out[0])
        copy(ours.mlp[0], theirs.ff.net[0].proj)
        copy(ours.mlp[2], theirs.ff.net[2])
    copy(model.output, peer.proj_out_2)
    x, index, label = torch.randn(3, 3, 8, 8), torch.tensor([0.0, 12.0, 999.0]), torch.tensor([0, 7, -1])
    with torch.no_grad():
        expected = peer(x, index, torch.tensor([0, 7, 10])).sample
        torch.testing.assert_close(model(x, index, label), expected, atol=1e-4, rtol=1e-4)

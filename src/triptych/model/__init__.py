"""Networks: each is called as model(x [B, C, H, W], c_noise [B], cond) -> [B, out_channels, H, W]."""

from triptych.model.dit import DiT as DiT
from triptych.model.mlp import MLP as MLP
from triptych.model.ncsn import NCSN as NCSN
from triptych.model.ncsnpp import NCSNpp as NCSNpp
from triptych.model.ncsnv2 import NCSNv2 as NCSNv2
from triptych.model.unet import UNet as UNet

"""One training step of each peer at our architecture, put together as the peer's own training script does it.

Each is built by `Way(network, batch, precision)` and then called: forward, mean squared error of eps, backward, clip of
the gradient's norm, optimizer, average of the weights. The inputs are the same fixed tensors for all.
"""

import contextlib
import importlib
import importlib.util
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.callback import EMA
from triptych.formulation import DDPM
from triptych.model import UNet
from triptych.schedule import LinearBeta


@dataclass(frozen=True)
class Network:
    """A U-Net that every library can build. channels of an image, its side, and the U-Net's sizes."""

    image_channels: int
    side: int
    channels: int
    multipliers: tuple[int, ...]
    attention: tuple[int, ...]
    forward_gflop: float  # of one image, attention products counted


NETWORKS = {
    "cifar": Network(3, 32, 128, (1, 2, 2, 2), (16,), 12.44),  # DDPM's for CIFAR-10: 35,746,307 parameters
    "tiny": Network(1, 8, 32, (1, 2), (4,), 0.0455),  # 1,001,729 parameters
}


class Way(ABC):
    """A training step of one library."""

    optimizer: torch.optim.Optimizer
    fused = False

    def __init__(self, network: Network, batch: int, precision: str, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.precision, self.device = precision, device
        self.model = self.build(network).to(device).train()
        shape = (batch, network.image_channels, network.side, network.side)
        self.x, self.eps = (torch.randn(shape, device=device) for _ in range(2))
        self.t = torch.linspace(0, 999, batch, device=device).round()
        self.prepare()

    @abstractmethod
    def build(self, network: Network) -> nn.Module:
        """The library's own network."""

    @abstractmethod
    def prepare(self) -> None:
        """The optimizer and what the average needs."""

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t)

    @abstractmethod
    def average(self) -> None:
        """One step of the average of the weights."""

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def autocast(self) -> contextlib.AbstractContextManager:
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def gradients(self) -> None:
        with self.autocast():
            out = self.predict(self.x, self.t)
        F.mse_loss(out.float(), self.eps).backward()

    def update(self) -> None:
        """The optimizer and the average."""
        self.optimizer.step()
        self.average()

    def __call__(self) -> None:
        self.gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.update()
        self.optimizer.zero_grad()


class Triptych(Way):
    """Ours: Adam and the average as conf/optimizer/adam.yaml and conf/callback/ema.yaml build them."""

    def build(self, network: Network) -> nn.Module:
        c, side = network.image_channels, network.side
        return UNet(c, c, side, network.channels, network.multipliers, 2, network.attention)

    def prepare(self) -> None:
        self.formulation = DDPM(model=self.model, schedule=LinearBeta())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-4, fused=True)
        self.ema = EMA(half_life=None, decay=0.9999, warmup=False)
        self.trainer = SimpleNamespace(global_step=0, datamodule=SimpleNamespace(global_batch_size=len(self.x)))
        self.ema.on_fit_start(self.trainer, self.formulation)

    def average(self) -> None:
        self.trainer.global_step += 1
        self.ema.on_train_batch_end(self.trainer, self.formulation)


class Compiled(Triptych):
    """Ours on a GPU: channels_last and the whole network compiled."""

    mode: str | None = None

    def prepare(self) -> None:
        self.model.to(memory_format=torch.channels_last)
        self.model.compile(mode=self.mode)
        super().prepare()


class Graphed(Compiled):
    """The same, replayed as CUDA graphs."""

    mode = "reduce-overhead"

    def __call__(self) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        super().__call__()


class Diffusers(Way):
    """examples/unconditional_image_generation: AdamW, EMAModel with decay warm-up."""

    def build(self, network: Network) -> nn.Module:
        import diffusers

        sides = [network.side // 2**i for i in range(len(network.multipliers))]
        kind = ["Attn" if side in network.attention else "" for side in sides]
        return diffusers.UNet2DModel(
            sample_size=network.side,
            in_channels=network.image_channels,
            out_channels=network.image_channels,
            block_out_channels=tuple(network.channels * m for m in network.multipliers),
            down_block_types=tuple(f"{k}DownBlock2D" for k in kind),
            up_block_types=tuple(f"{k}UpBlock2D" for k in reversed(kind)),
            dropout=0.1,
            attention_head_dim=None,
            norm_num_groups=min(32, network.channels // 4),
            norm_eps=1e-6,
        )

    def prepare(self) -> None:
        from diffusers.training_utils import EMAModel

        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
        self.ema = EMAModel(self.model.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t).sample

    def average(self) -> None:
        self.ema.step(self.model.parameters())


class DiffusersCompiled(Diffusers):
    """The same, compiled, with channels_last."""

    def prepare(self) -> None:
        self.model.to(memory_format=torch.channels_last)
        self.model.compile()
        super().prepare()


class Lucidrains(Way):
    """denoising-diffusion-pytorch, its Unet with multipliers of ours, Adam, ema_pytorch. A smaller network."""

    def build(self, network: Network) -> nn.Module:
        with _without_torchvision():
            from denoising_diffusion_pytorch import Unet

        return Unet(network.channels, dim_mults=network.multipliers, channels=network.image_channels, dropout=0.1)

    def prepare(self) -> None:
        from ema_pytorch import EMA as Average

        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self.ema = Average(self.model, beta=0.995, update_every=1, update_after_step=0)

    def average(self) -> None:
        self.ema.update()


class Azula(Way):
    """azula's copy of ADM's U-Net (always recomputes activations), AdamW, torch's AveragedModel."""

    def build(self, network: Network) -> nn.Module:
        adm = importlib.import_module("azula.plugins.adm._src.unet")
        return adm.UNetModel(
            network.side,
            network.image_channels,
            network.channels,
            network.image_channels,
            2,
            tuple(network.side // side for side in network.attention),
            dropout=0.1,
            channel_mult=network.multipliers,
        )

    def prepare(self) -> None:
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9999))

    def average(self) -> None:
        self.ema.update_parameters(self.model)


WAYS: dict[str, Callable[..., Way]] = {
    "triptych": Triptych,
    "diffusers": Diffusers,
    "lucidrains": Lucidrains,
    "azula": Azula,
}
GPU_WAYS: dict[str, Callable[..., Way]] = {
    "triptych": Triptych,
    "triptych compiled": Compiled,
    "triptych graphed": Graphed,
    "diffusers": Diffusers,
    "diffusers compiled": DiffusersCompiled,
}


@contextlib.contextmanager
def _without_torchvision() -> Iterator[None]:
    """lucidrains' module imports torchvision for its dataset, which is not used here and may not be installed."""
    stubs = {}
    try:
        importlib.import_module("torchvision")
    except ImportError:
        stubs = {
            name: types.ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.utils")
        }
        stubs["torchvision"].transforms = stubs["torchvision.transforms"]  # type: ignore[attr-defined]
        stubs["torchvision"].utils = stubs["torchvision.utils"]  # type: ignore[attr-defined]
        sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in stubs:
            sys.modules.pop(name, None)


def available(ways: dict[str, Callable[..., Way]]) -> dict[str, Callable[..., Way]]:
    """Those whose library is installed; the others are named."""
    needs = {"diffusers": "diffusers", "lucidrains": "denoising_diffusion_pytorch", "azula": "azula"}
    found = {}
    for name, way in ways.items():
        module = needs.get(name.split()[0])
        if module is None or importlib.util.find_spec(module):
            found[name] = way
        else:
            print(f"{name} is not installed and left out: pip install -e '.[bench]'")
    return found

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DINOv2(nn.Module):
    """Exposing Flaws of Generative Model Evaluation Metrics. Stein et al. 2023. arXiv:2306.04675.

    The features of fd_dinov2: the class token of a DINOv2 (Oquab et al. 2023, arXiv:2304.07193) after the last layer
    norm; images are resized to `resolution` (bicubic, antialiased) and normalised as ImageNet. uint8 [N, C, H, W] ->
    [N, D]. Needs the optional extra: pip install 'triptych[dinov2]'.

    Attributes:
        model: a hub name or a local folder, as `transformers.AutoModel.from_pretrained` reads them.
        sha256: of all weights, for the record.
    """

    name = "dinov2"
    max_batch = 64

    def __init__(self, model: str = "facebook/dinov2-large", resolution: int = 224) -> None:
        super().__init__()
        try:
            from transformers import AutoModel  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError("fd_dinov2 needs the package transformers: pip install 'triptych[dinov2]'.") from error
        try:
            self.network = AutoModel.from_pretrained(model)
        except OSError as error:
            raise FileNotFoundError(
                f"DINOv2 {model!r} is neither a local folder nor to be had from the hub: give a folder with "
                "config.json and model.safetensors as metric.extractor.model=<folder>."
            ) from error
        self.resolution = resolution
        self.num_features = int(self.network.config.hidden_size)
        self.resize = f"bicubic, antialiased, to {resolution}x{resolution}"
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))
        self.mean: Tensor
        self.std: Tensor
        digest = hashlib.sha256()
        for key, value in sorted(self.network.state_dict().items()):
            digest.update(key.encode() + value.detach().float().contiguous().numpy().tobytes())
        self.sha256 = digest.hexdigest()
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise ValueError(f"DINOv2 reads images of 3 channels (or 1), but these have {images.shape[1]}.")
        x = images.float().expand(-1, 3, -1, -1)
        if x.shape[-2:] != (self.resolution, self.resolution):
            size = (self.resolution, self.resolution)
            x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
        return self.network((x / 255 - self.mean) / self.std).last_hidden_state[:, 0]

"""Our Inception against torch-fidelity's on the same random weights: features and logits must agree to 1e-4.

    python bench/inception_equality.py [images]

Needs torch-fidelity (with torchvision, or its two missing operators stubbed as below) in some environment of its own:
it must not be installed beside Lightning on a machine without CUDA. Prints one JSON line; exits 1 on a difference.
"""

import json
import sys
import tempfile

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # the CUDA build of torchvision beside the CPU build of torch lacks two operators
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.interpolate_compat_tensorflow import (  # noqa: E402
    interpolate_bilinear_2d_like_tensorflow1x,
)

from triptych.metric.inception import Inception, tensorflow_resize  # noqa: E402


def random_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Convolutions of unit gain and batch statistics away from 0 and 1, so that an exchanged one shows."""
    generator = torch.Generator().manual_seed(seed)
    state = Inception(pretrained=False).state_dict()
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("conv.weight"):
            state[name] = noise * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = 1 + 0.3 * noise.tanh()
        else:
            state[name] = 0.2 * noise
    return state


def main(count: int = 8) -> None:
    torch.set_num_threads(1)
    result: dict[str, float] = {}
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(random_weights(), file.name)
        ours = Inception(file.name)
        names = ["2048", "logits_unbiased", "logits"]
        theirs = FeatureExtractorInceptionV3("inception", names, feature_extractor_weights_path=file.name)
    for size in ((32, 32), (48, 64), (299, 299), (512, 400)):
        generator = torch.Generator().manual_seed(size[0])
        images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
        features = ours(images)
        with torch.no_grad():
            expected = theirs(images)
        got = features, ours.logits(features), ours.logits(features, bias=True)
        for name, a, b in zip(names, got, expected, strict=True):
            key = f"{name}_{size[0]}x{size[1]}"
            result[key] = float((a - b).abs().max())
            result[f"{key}_relative"] = float((a - b).abs().max() / b.abs().max())
        pixels = images.float()
        resized = interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(299, 299), align_corners=False)
        result[f"resize_{size[0]}x{size[1]}"] = float((tensorflow_resize(pixels, 299) - resized).abs().max())
        print(f"{size}: features of size {float(expected[0].abs().max()):.3f}", flush=True)
    worst = max(value for key, value in result.items() if key.startswith("2048"))
    print(json.dumps(result | {"worst_feature_difference": worst, "passes": worst < 1e-4}))
    sys.exit(worst >= 1e-4)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

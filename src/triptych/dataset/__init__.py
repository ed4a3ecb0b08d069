"""Sources of images. A new one is a file here that implements `arrays`, and a yaml in conf/dataset."""

from triptych.dataset.base import Dataset
from triptych.dataset.batches import per_device_batch_size
from triptych.dataset.cifar import CIFAR
from triptych.dataset.digits import Digits
from triptych.dataset.huggingface import HuggingFace
from triptych.dataset.idx import IDX
from triptych.dataset.image_folder import ImageFolder
from triptych.dataset.npz import NPZ
from triptych.dataset.pixels import normalise
from triptych.dataset.toy import Toy

__all__ = [
    "CIFAR",
    "Dataset",
    "Digits",
    "HuggingFace",
    "IDX",
    "ImageFolder",
    "NPZ",
    "Toy",
    "normalise",
    "per_device_batch_size",
]

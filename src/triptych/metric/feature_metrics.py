from collections.abc import Callable, Mapping

from torch import nn
from torchmetrics import MetricCollection

from triptych.metric.base import FeatureMetric
from triptych.metric.extractor import FrozenExtractor


def feature_metrics(
    extractor: nn.Module | FrozenExtractor, metrics: Mapping[str, Callable[[FrozenExtractor], FeatureMetric]]
) -> MetricCollection:
    """Several metrics on the features of one pass: `update(images, real=…)` runs the network once for all.

    `metrics`: name -> a class, or a partial of one, that still wants its extractor.
    """
    shared = FrozenExtractor.of(extractor)
    return MetricCollection({name: metric(shared) for name, metric in metrics.items()}, compute_groups=False)

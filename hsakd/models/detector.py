"""Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017) on a trained ImageNet ResNet: torchvision's, as it is."""

from collections.abc import Sequence

import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from hsakd.config import DETECTOR_BACKBONES, DetectionConfig
from hsakd.models.authors import authors_keys
from hsakd.models.network import HierarchicalNet


def build_detector(
    network: HierarchicalNet, config: DetectionConfig, *, num_classes: int, mean: Sequence[float], std: Sequence[float], seed: int
) -> FasterRCNN:
    """Return a detector of `num_classes` (background apart) on a copy of a network's backbone; its other weights follow from `seed`.

    It takes lists of images [3, H, W] in 0..1, which it normalizes by `mean` and `std` (those that the network was trained with) and
    resizes. BN is torchvision's frozen one: statistics, scale and shift stay as they are.
    """
    assert network.name in DETECTOR_BACKBONES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = resnet_fpn_backbone(
            backbone_name=network.name.removesuffix("_imagenet"), weights=None, trainable_layers=config.trainable_layers
        )
        detector = FasterRCNN(
            backbone,
            num_classes=1 + num_classes,
            min_size=config.shorter_side,
            max_size=config.longer_side,
            box_batch_size_per_image=config.sampled_proposals,
            image_mean=list(mean),
            image_std=list(std),
        )
    state = network.state_dict()
    named = {
        theirs.removeprefix("backbone."): state[ours] for ours, theirs in authors_keys(network).items() if ours.startswith("backbone.")
    }
    body = {key: tensor for key, tensor in named.items() if not key.startswith("fc.") and not key.endswith("num_batches_tracked")}
    detector.backbone.body.load_state_dict(body)  # strict: every tensor but the linear layer, and what frozen BN does not count
    return detector

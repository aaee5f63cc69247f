"""Made-up images and ground truth in Detectron2's format, on the device."""

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import BitMasks, Instances

from .scene import regions

__all__ = ["image_size", "test_inputs", "training_inputs"]


def image_size(cfg: CfgNode, original_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that the test mapper resizes an image of ``original_size`` to."""
    source = cfg.INPUT
    height, width = original_size
    return ResizeShortestEdge.get_output_shape(
        height, width, source.MIN_SIZE_TEST, source.MAX_SIZE_TEST
    )


def test_inputs(cfg: CfgNode, batch: int, original_size: tuple[int, int]) -> list[dict]:
    """What the test mapper hands over: resized uint8 images of noise, and their original size."""
    height, width = original_size
    images = _images(batch, image_size(cfg, original_size), cfg.MODEL.DEVICE)
    return [{"image": image, "height": height, "width": width} for image in images]


def training_inputs(cfg: CfgNode, batch: int, num_segments: int) -> list[dict]:
    """Square uint8 images of noise, each cut up into ``num_segments`` segments of random classes.

    Returns:
        As the training mapper: ``image`` (3, H, W) and ``instances`` with ``gt_classes`` (M,) int64
        and ``gt_masks``, BitMasks (M, H, W).
    """
    side, device = cfg.INPUT.IMAGE_SIZE, cfg.MODEL.DEVICE
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for i, image in enumerate(_images(batch, (side, side), device)):
        instances = Instances((side, side))
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        instances.gt_classes = torch.randint(classes, (num_segments,), generator=generator)
        instances.gt_masks = BitMasks(regions(num_segments, (side, side), seed=i) > 0)
        inputs.append({"image": image, "instances": instances.to(device)})
    return inputs


def _images(batch: int, size: tuple[int, int], device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, *size), dtype=torch.uint8, generator=generator)
    return images.to(device)

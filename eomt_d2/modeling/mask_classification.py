"""What EoMT and Mask2Former share: images in, mask predictions in the middle, losses or results
out. A network only adds ``predict``."""

import math
from collections import defaultdict
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..errors import UserError
from .compilation import CompiledPredict
from .criterion import LossNormalizers, MaskClassificationCriterion
from .mask_resize import MaskGeometry
from .matcher import HungarianMatcher
from .postprocessing import PostProcessing, semantic_scores
from .structures import MaskPrediction, MaskTarget
from .windows import merge_windows, window_positions

__all__ = ["MaskClassificationModel"]

TEST_MODES = ("square", "divisible", "window")
TEST_PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


class MaskClassificationModel(CompiledPredict):
    """Base of the meta-architectures that classify masks (MaskFormer, arXiv 2107.06278).

    Args:
        num_classes: K, without "no object".
        num_queries: Q.
        criterion: turns predictions and targets into losses.
        postprocessing: turns one image's logits into Detectron2's results.
        pixel_mean: mean of the channels, in the range and order of the input images.
        pixel_std: standard deviation of the channels.
        size_divisibility: the network takes images whose sides are multiples of this.
        image_size: side in pixels of square and window inference.
        test_mode: "square" pads images to ``image_size``; "divisible" pads them to a multiple of
            ``test_size_divisibility``; "window" slides a square window over them. Whatever the
            mode, what the network needs beyond that is padded too.
        test_size_divisibility: for "divisible"; 0 means ``size_divisibility``.
        pad_after_normalization: padding has the mean colour (Mask2Former) instead of being black.
        test_precision: of the network in inference: "float32" leaves it as it is called;
            "float16" or "bfloat16" are mixed precision. Results are made in float32.
        compile_mode: see :meth:`compile_predict`. Inference in "divisible" mode stays uncompiled:
            it would compile for every size of image.
    """

    # Which of {"boxes", "sem_seg"} the dataset mapper must add to the instance masks.
    required_targets: frozenset[str] = frozenset()

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        num_queries: int,
        criterion: MaskClassificationCriterion,
        postprocessing: PostProcessing,
        pixel_mean: list[float],
        pixel_std: list[float],
        size_divisibility: int,
        image_size: int,
        test_mode: str = "square",
        test_size_divisibility: int = 0,
        pad_after_normalization: bool = False,
        test_precision: str = "float32",
        compile_mode: str = "off",
    ):
        super().__init__()
        if test_mode not in TEST_MODES:
            raise UserError(f"INPUT.TEST_MODE is {test_mode!r}: choose from {TEST_MODES}.")
        if test_precision not in TEST_PRECISIONS:
            raise UserError(
                f"TEST.PRECISION is {test_precision!r}: choose from {tuple(TEST_PRECISIONS)}."
            )
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.criterion = criterion
        self.postprocessing = postprocessing
        self.size_divisibility = size_divisibility
        self.image_size = image_size
        self.test_mode = test_mode
        self.pad_after_normalization = pad_after_normalization
        self.test_size_divisibility = math.lcm(test_size_divisibility or 1, size_divisibility)
        self.test_dtype = TEST_PRECISIONS[test_precision]
        self.compile_predict(compile_mode)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Constructor arguments that do not depend on the network."""
        node, num_classes = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        weights = dict(
            mask_weight=node.MASK_WEIGHT,
            dice_weight=node.DICE_WEIGHT,
            num_points=node.TRAIN_NUM_POINTS,
        )
        criterion = MaskClassificationCriterion(
            num_classes=num_classes,
            matcher=HungarianMatcher(
                class_weight=node.COST_CLASS_WEIGHT or node.CLASS_WEIGHT, **weights
            ),
            class_weight=node.CLASS_WEIGHT,
            no_object_weight=node.NO_OBJECT_WEIGHT,
            oversample_ratio=node.OVERSAMPLE_RATIO,
            importance_sample_ratio=node.IMPORTANCE_SAMPLE_RATIO,
            normalizer=node.LOSS_NORMALIZER,
            **weights,
        )
        postprocessing = PostProcessing(
            panoptic_on=node.TEST.PANOPTIC_ON,
            instance_on=node.TEST.INSTANCE_ON,
            semantic_on=node.TEST.SEMANTIC_ON,
            semantic_output=cfg.TEST.SEMANTIC_OUTPUT,
            score_threshold=node.TEST.OBJECT_MASK_THRESHOLD,
            overlap_threshold=node.TEST.OVERLAP_THRESHOLD,
            max_instances=cfg.TEST.DETECTIONS_PER_IMAGE,
            thing_ids=_thing_ids(cfg) if node.TEST.PANOPTIC_ON else None,
        )
        return dict(
            num_classes=num_classes,
            num_queries=node.NUM_OBJECT_QUERIES,
            criterion=criterion,
            postprocessing=postprocessing,
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            image_size=cfg.INPUT.IMAGE_SIZE,
            test_mode=cfg.INPUT.TEST_MODE,
            # Mask2Former's configs say -1 where nothing is asked for.
            test_size_divisibility=max(cfg.INPUT.SIZE_DIVISIBILITY, 0) or node.SIZE_DIVISIBILITY,
            pad_after_normalization=cfg.INPUT.PAD_AFTER_NORMALIZATION,
            test_precision=cfg.TEST.PRECISION,
            compile_mode=cfg.MODEL.COMPILE,
        )

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def predict(self, images: Tensor, all_predictions: bool = False) -> list[MaskPrediction]:
        """The network.

        Args:
            images: (B, 3, H, W) float, normalised; H and W are multiples of
                ``size_divisibility``.
            all_predictions: also make the intermediate predictions that training supervises.

        Returns:
            Predictions in the order they are made; the last one is final.
        """
        raise TypeError(f"{type(self).__name__} does not define predict().")

    def loss_normalizers(self, batched_inputs: list[dict]) -> LossNormalizers:
        """What the losses of an effective batch are divided by, known before any forward pass.

        A training step that accumulates gradients asks for them once, with all images, and hands
        them to every :meth:`forward`. Every process must call this, or none.

        Args:
            batched_inputs: all images that this process has of the effective batch.
        """
        num_segments = [len(x["instances"]) for x in batched_inputs]
        return self.criterion.normalizers(num_segments, self.num_queries, self.device)

    def forward(
        self, batched_inputs: list[dict], normalizers: LossNormalizers | None = None
    ) -> dict[str, Tensor] | list[dict]:
        """Detectron2's contract of a meta-architecture.

        Args:
            batched_inputs: one dict per image with

                * ``image``: (3, H, W) uint8 or float tensor in cfg.INPUT.FORMAT, range [0, 255];
                * ``height``, ``width``: size of the results, in pixels (default: the image's);
                * ``instances``, in training: an Instances with ``gt_classes`` (M,) int64 and
                  ``gt_masks``, BitMasks or a bool tensor (M, H, W).

            normalizers: in training on a part of an effective batch, its
                :meth:`loss_normalizers`; the losses of all parts then add up to its losses.

        Returns:
            In training the weighted losses, scalars. Otherwise one dict per image with, as
            switched on in MODEL.MASK_FORMER.TEST,

            * ``panoptic_seg``: (height, width) int32 map of segment ids, 0 being void, and the
              list of segments (``id``, ``category_id``, ``isthing``);
            * ``instances``: an Instances with ``pred_masks`` (N, height, width) bool,
              ``pred_boxes``, ``pred_classes``, ``scores``;
            * ``sem_seg``: (K, height, width) float scores, or with TEST.SEMANTIC_OUTPUT "labels"
              ``sem_seg_labels``: (height, width) int64.
        """
        if self.training:
            return self._losses(batched_inputs, normalizers)
        images = [x["image"].to(self.device) for x in batched_inputs]
        sizes = [
            (x.get("height", image.shape[-2]), x.get("width", image.shape[-1]))
            for x, image in zip(batched_inputs, images, strict=True)
        ]
        if self.test_mode == "window":
            return [self._slide(image, size) for image, size in zip(images, sizes, strict=True)]
        return self._infer(images, sizes)

    def _losses(
        self, batched_inputs: list[dict], normalizers: LossNormalizers | None
    ) -> dict[str, Tensor]:
        images = [x["image"].to(self.device) for x in batched_inputs]
        sides = torch.tensor([image.shape[-2:] for image in images]).amax(0).tolist()
        size = tuple(_ceil_to(side, self.size_divisibility) for side in sides)
        targets = [self._target(x["instances"], size) for x in batched_inputs]
        predictions = self.predict(self._stack(images, size), all_predictions=True)
        return self.criterion(predictions, targets, normalizers)

    def _target(self, instances, size: tuple[int, int]) -> MaskTarget:
        masks = instances.gt_masks
        masks = getattr(masks, "tensor", masks).to(self.device)
        return MaskTarget(instances.gt_classes.to(self.device), _pad(masks, size))

    def _infer(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict]:
        # Images are only batched with others of the same padded size: what an image gives does
        # not depend on its neighbours.
        groups = defaultdict(list)
        for i, image in enumerate(images):
            groups[self._padded_size(image)].append(i)
        results = [{}] * len(images)
        for padded, members in groups.items():
            mask_logits, class_logits = self._final([images[i] for i in members], padded)
            for i, masks, classes in zip(members, mask_logits, class_logits, strict=True):
                geometry = MaskGeometry(padded, tuple(images[i].shape[-2:]), sizes[i])
                results[i] = self.postprocessing(classes, masks, geometry)
        return results

    def _final(self, images: list[Tensor], padded: tuple[int, int]) -> MaskPrediction:
        """The final prediction for some images, in the precision of inference."""
        batch = self._stack(images, padded)
        predict = self.predict
        if self.test_mode == "divisible":
            predict = partial(type(self).predict, self)
        if self.test_dtype is None:
            return predict(batch)[-1]
        with torch.autocast(batch.device.type, dtype=self.test_dtype):
            return predict(batch)[-1]

    def _slide(self, image: Tensor, output_size: tuple[int, int]) -> dict:
        """Semantic results of one image from square windows along its long side."""
        image_size, side = tuple(image.shape[-2:]), self.image_size
        if min(image_size) != side:
            raise UserError(
                f"The short side of an image of {image_size[0]} x {image_size[1]} pixels is not "
                f"the window of INPUT.IMAGE_SIZE {side}: set INPUT.MIN_SIZE_TEST to {side} and "
                "INPUT.MAX_SIZE_TEST larger than any long side."
            )
        positions = window_positions(*image_size, side)
        crops = [image[:, top : top + side, left : left + side] for top, left in positions]
        padded = _ceil_to(side, self.size_divisibility)
        prediction = self._final(crops, (padded, padded))
        # A generator: the scores of one window at a time.
        windows = (
            semantic_scores(masks, classes, (padded, padded))[:, :side, :side]
            for masks, classes in zip(prediction.mask_logits, prediction.class_logits, strict=True)
        )
        scores = merge_windows(windows, positions, image_size)
        return self.postprocessing.semantic(scores, output_size)

    def _padded_size(self, image: Tensor) -> tuple[int, int]:
        height, width = image.shape[-2:]
        if self.test_mode == "divisible":
            step = self.test_size_divisibility
            return _ceil_to(height, step), _ceil_to(width, step)
        if max(height, width) > self.image_size:
            raise UserError(
                f"An image of {height} x {width} pixels does not fit the square of "
                f"INPUT.IMAGE_SIZE {self.image_size}: set INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST "
                f"to {self.image_size}."
            )
        side = _ceil_to(self.image_size, self.size_divisibility)
        return side, side

    def _stack(self, images: list[Tensor], size: tuple[int, int]) -> Tensor:
        if self.pad_after_normalization:
            normalized = [(image - self.pixel_mean) / self.pixel_std for image in images]
            return torch.stack([_pad(image, size) for image in normalized])
        # Padding is black, not the mean: it comes before the normalisation, as published.
        batch = torch.stack([_pad(image, size) for image in images])
        return (batch - self.pixel_mean) / self.pixel_std


def _thing_ids(cfg) -> frozenset[int]:
    """Contiguous ids of the thing classes, from the metadata of the test or training data."""
    names = [*cfg.DATASETS.TEST[:1], *cfg.DATASETS.TRAIN[:1]]
    for name in names:
        things = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
        if things is not None:
            return frozenset(things.values())
    raise UserError(
        "Panoptic results need to know which classes are things: the metadata of "
        f"{' and '.join(map(repr, names)) or 'DATASETS.TEST (which is empty)'} lacks "
        "'thing_dataset_id_to_contiguous_id'; was register_datasets() called?"
    )


def _ceil_to(side: int, step: int) -> int:
    return -(-side // step) * step


def _pad(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad (..., H, W) with zeros on the right and at the bottom."""
    return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]))

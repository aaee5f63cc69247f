"""One dataset mapper for panoptic, instance and semantic ground truth."""

import logging

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Instances

from eomt_d2.data.augmentation import draw_geometry, transform_id_map, transform_image
from eomt_d2.data.color_jitter import apply_color_jitter, draw_color_jitter
from eomt_d2.data.ground_truth import (
    GROUND_TRUTH_KEYS,
    GroundTruth,
    ground_truth_kind,
    instance_ground_truth,
    panoptic_ground_truth,
    semantic_ground_truth,
)
from eomt_d2.data.image_reading import read_image, read_label_map
from eomt_d2.data.size_checks import check_listed_size, check_same_size
from eomt_d2.errors import UserError

__all__ = ["MaskClassificationMapper"]

# Only an end to what would never end: even a segment that one crop in a hundred shows is found
# with a probability of 0.99996.
MAX_DRAWS = 1000

# Targets that a meta-architecture can ask for through its attribute `required_targets`.
OPTIONAL_TARGETS = frozenset({"boxes", "sem_seg"})

_logger = logging.getLogger(__name__)


class MaskClassificationMapper:
    """Turns an image in Detectron2's dataset format into what a mask classification model takes.

    Training follows the published EoMT recipe: drop crowds, colour jitter (if asked for), flip,
    scale, pad right and bottom with 0, random square crop, drop segments that the crop emptied.
    Two options are those of Mask2Former's own recipe: another padding, emptied segments kept.
    Testing only resizes, by Detectron2's ``ResizeShortestEdge``, exactly as the unmodified
    ``DefaultPredictor`` does. (Its sizes are rounded half up. The published "fit inside the square"
    rounds half to even, which differs only where a side is a whole number and a half.)
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        image_format: str = "RGB",
        image_size: int = 640,
        crop_height: int = 0,
        scale_fit: str = "long",
        min_scale: float = 0.1,
        max_scale: float = 2.0,
        color_jitter: bool = False,
        empty_samples: str = "redraw",
        emptied_segments: str = "drop",
        pad_value: int = 0,
        ground_truth: str = "auto",
        ignore_value: int = 255,
        num_semantic_classes: int | None = None,
        required_targets: frozenset[str] = frozenset(),
        mask_tensors: bool = False,
        min_size_test: int = 640,
        max_size_test: int = 640,
    ):
        """
        Args:
            is_train: augment and give targets; otherwise only resize.
            image_format: "RGB" or "BGR", the order of the channels in the result.
            image_size: side of the square training crop, in pixels.
            crop_height: of a crop that is no square and ``image_size`` wide; 0: a square.
            scale_fit: the side, "long" or "short", that fits ``image_size`` at scale 1.
            min_scale, max_scale: range of the scale jitter.
            color_jitter: the photometric jitter of the ADE20K and Cityscapes recipes.
            empty_samples: what becomes of an image without a segment in its crop: "redraw" the
                augmentation (at most 1000 times), or "keep" it as a negative.
            emptied_segments: "drop" segments that the crop leaves without a pixel, or "keep" them
                as targets with empty masks.
            pad_value: of padded pixels, in [0, 255].
            ground_truth: "panoptic", "instance", "semantic", or "auto", the first of these that
                an image has.
            ignore_value: label of the pixels of a semantic label map that have no class.
            num_semantic_classes: if known, larger labels in label maps are refused.
            required_targets: of {"boxes", "sem_seg"}, what a training sample has besides masks.
            mask_tensors: give masks as one tensor instead of ``BitMasks``.
            min_size_test, max_size_test: of ``ResizeShortestEdge``, in pixels.

        Raises:
            UserError: an unknown ``empty_samples`` or ``emptied_segments``, or a
                ``required_targets`` that is not offered.
        """
        if empty_samples not in ("redraw", "keep"):
            raise UserError(
                f'INPUT.EMPTY_SAMPLES is "{empty_samples}"; it has to be redraw or keep.'
            )
        if emptied_segments not in ("drop", "keep"):
            raise UserError(
                f'INPUT.EMPTIED_SEGMENTS is "{emptied_segments}"; it has to be drop or keep.'
            )
        if not required_targets <= OPTIONAL_TARGETS:
            raise UserError(
                f"The meta-architecture requires the targets {sorted(required_targets)}, but only "
                f"{sorted(OPTIONAL_TARGETS)} are offered besides classes and masks."
            )
        if not 0 < min_scale <= max_scale:
            raise UserError(
                f"INPUT.MIN_SCALE ({min_scale}) and INPUT.MAX_SCALE ({max_scale}) have to be "
                "positive and in ascending order."
            )
        self.is_train = is_train
        self.image_format = image_format
        self.image_size = image_size
        self.crop_shape = (crop_height or image_size, image_size)
        self.scale_fit = scale_fit
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.color_jitter = color_jitter
        self.empty_samples = empty_samples
        self.emptied_segments = emptied_segments
        self.pad_value = pad_value
        self.ground_truth = ground_truth
        self.ignore_value = ignore_value
        self.num_semantic_classes = num_semantic_classes
        self.required_targets = required_targets
        self.mask_tensors = mask_tensors
        self.test_resize = T.ResizeShortestEdge([min_size_test, min_size_test], max_size_test)
        self._skipped: set[str] = set()

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None
        stuff_classes = getattr(metadata, "stuff_classes", None)
        architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
        return {
            "is_train": is_train,
            "image_format": cfg.INPUT.FORMAT,
            "image_size": cfg.INPUT.IMAGE_SIZE,
            "crop_height": cfg.INPUT.CROP_HEIGHT,
            "scale_fit": cfg.INPUT.SCALE_FIT,
            "min_scale": cfg.INPUT.MIN_SCALE,
            "max_scale": cfg.INPUT.MAX_SCALE,
            "color_jitter": cfg.INPUT.COLOR_JITTER,
            "empty_samples": cfg.INPUT.EMPTY_SAMPLES,
            "emptied_segments": cfg.INPUT.EMPTIED_SEGMENTS,
            "pad_value": cfg.INPUT.PAD_VALUE,
            "ground_truth": cfg.INPUT.DATASET_MAPPER_NAME,
            "ignore_value": getattr(metadata, "ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE),
            "num_semantic_classes": None if stuff_classes is None else len(stuff_classes),
            # An architecture that does not say what it needs gets everything.
            "required_targets": getattr(architecture, "required_targets", OPTIONAL_TARGETS),
            "mask_tensors": cfg.INPUT.MASK_FORMAT == "tensor",
            "min_size_test": cfg.INPUT.MIN_SIZE_TEST,
            "max_size_test": cfg.INPUT.MAX_SIZE_TEST,
        }

    def __call__(self, dataset_dict: dict) -> dict | None:
        """
        Args:
            dataset_dict: an image in Detectron2's dataset format; it is not changed.

        Returns:
            the entries of ``dataset_dict`` without its annotations, and

            - ``image``: (3, H, W) uint8 tensor in ``image_format``; H = W = ``image_size`` in
              training, unless a ``crop_height`` is given.
            - ``height``, ``width``: size of the original image in pixels.

            in training also

            - ``instances``: ``Instances`` of the crop with ``gt_classes`` (M,) int64 and
              ``gt_masks`` ``BitMasks`` (M, H, W), or a bool tensor with ``mask_tensors``;
              ``gt_boxes`` (the boxes of the cropped masks) if required. Crowd, void, ignored and
              padded pixels are in no mask.
            - ``sem_seg``: (H, W) int64 with the ignore value outside of all segments, if required
              and known: from panoptic or semantic ground truth, or from the label map that comes
              with the instances.

            None, on which Detectron2's ``MapDataset`` takes another image instead, for an image
            whose ground truth has no pixel at all and which is not kept as a negative.

        Raises:
            UserError: a file or annotation that cannot be used, or no segment in 1000 draws.
        """
        image = self.read_image(dataset_dict)
        height, width = image.shape[:2]
        result = {
            key: value
            for key, value in dataset_dict.items()
            if key not in ("annotations", "segments_info")
        }
        result.update(height=height, width=width)
        if self.is_train:
            targets = self._training_sample(dataset_dict, image)
            if targets is None:
                return None
            result.update(targets)
        else:
            image = self.test_resize.get_transform(image).apply_image(image)
            result["image"] = self._as_tensor(image)
        return result

    def _training_sample(self, dataset_dict: dict, image: np.ndarray) -> dict | None:
        height, width = image.shape[:2]
        kind = ground_truth_kind(dataset_dict, self.ground_truth)
        truth = self.read_ground_truth(dataset_dict, kind, (height, width))
        rng = self._sample_generator()
        for draw in range(MAX_DRAWS):
            jitter = draw_color_jitter(rng) if self.color_jitter else []
            geometry = draw_geometry(
                rng,
                height,
                width,
                crop_size=self.image_size,
                crop_height=self.crop_shape[0],
                fit=self.scale_fit,
                min_scale=self.min_scale,
                max_scale=self.max_scale,
            )
            cropped = truth._replace(
                layers=tuple(transform_id_map(layer, geometry) for layer in truth.layers)
            )
            segments = cropped.nonempty()
            if self.emptied_segments == "keep":
                segments = np.arange(len(truth.classes))
            if len(segments) or self.empty_samples == "keep":
                break
            if draw == 0 and not len(truth.nonempty()):
                self._warn_skipped(dataset_dict["file_name"], kind)
                return None
        else:
            raise UserError(
                f"No segment of {dataset_dict['file_name']} was visible in any of {MAX_DRAWS} "
                'random crops; set INPUT.EMPTY_SAMPLES to "keep", raise INPUT.MIN_SCALE or remove '
                "the image."
            )

        image = transform_image(apply_color_jitter(image, jitter), geometry, self.pad_value)
        sample = {
            "image": self._as_tensor(image),
            "instances": self._instances(cropped, segments),
        }
        if "sem_seg" in self.required_targets:
            labels = self._label_map(dataset_dict, kind, cropped, geometry)
            if labels is not None:
                sample["sem_seg"] = labels
        return sample

    def _sample_generator(self) -> np.random.Generator:
        """Every random number of a sample comes from this one generator."""
        # The training loader seeds NumPy's global state for each sample.
        return np.random.default_rng(np.random.randint(0, 2**32, size=4, dtype=np.uint32))

    def read_image(self, dataset_dict: dict) -> np.ndarray:
        """The image as it is before any augmentation: (H, W, 3) uint8, RGB.

        Raises:
            UserError: its file cannot be used, or has another size than the data set says.
        """
        image = read_image(dataset_dict["file_name"], "RGB")
        height, width = image.shape[:2]
        check_listed_size(dataset_dict, height, width)
        return image

    def read_ground_truth(
        self, dataset_dict: dict, kind: str, size: tuple[int, int] | None
    ) -> GroundTruth:
        """The ground truth before any augmentation.

        Args:
            dataset_dict: an image in Detectron2's dataset format.
            kind: "panoptic", "instance" or "semantic", which the image has.
            size: (height, width) of the image in pixels; without it, instances cannot be read and
                other ground truth is not compared with it.

        Raises:
            UserError: a file or an annotation of it cannot be used.
        """
        if kind == "instance":
            if size is None:
                raise ValueError("Instances cannot be drawn without the size of their image.")
            return instance_ground_truth(dataset_dict, *size)
        if kind == "panoptic":
            truth = panoptic_ground_truth(dataset_dict)
        else:
            truth = semantic_ground_truth(
                dataset_dict,
                ignore_value=self.ignore_value,
                num_classes=self.num_semantic_classes,
            )
        if size is not None:
            check_same_size(
                dataset_dict["file_name"],
                size,
                dataset_dict[GROUND_TRUTH_KEYS[kind]],
                truth.size,
            )
        return truth

    def _instances(self, cropped: GroundTruth, segments: np.ndarray) -> Instances:
        size = self.crop_shape
        instances = Instances(size)
        instances.gt_classes = torch.from_numpy(cropped.classes[segments])
        masks = BitMasks(torch.from_numpy(cropped.masks(segments, *size)))
        instances.gt_masks = masks.tensor if self.mask_tensors else masks
        if "boxes" in self.required_targets:
            instances.gt_boxes = masks.get_bounding_boxes()
        return instances

    def _label_map(self, dataset_dict, kind, cropped, geometry) -> torch.Tensor | None:
        if kind != "instance":
            content = cropped.label_map(self.ignore_value)
        elif "sem_seg_file_name" in dataset_dict:
            content = transform_id_map(read_label_map(dataset_dict["sem_seg_file_name"]), geometry)
        else:
            return None
        labels = np.full(self.crop_shape, self.ignore_value, np.int64)
        labels[: content.shape[0], : content.shape[1]] = content
        return torch.from_numpy(labels)

    def _as_tensor(self, image: np.ndarray) -> torch.Tensor:
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def _warn_skipped(self, file_name: str, kind: str) -> None:
        if file_name not in self._skipped:
            self._skipped.add(file_name)
            _logger.warning(
                f"{file_name} is skipped: no pixel of its {kind} ground truth belongs to a segment"
            )

"""EoMT of the package transformers, with the weights of ours and behind Detectron2's contract.

Known are its public classes and what they do when called, not their source.
"""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt_d2.checkpoint.targets import to_transformers, transformers_config
from eomt_d2.errors import UserError
from eomt_d2.modeling import EoMT
from eomt_d2.modeling.structures import MaskPrediction

__all__ = [
    "TOLERANCE",
    "Agreement",
    "TransformersEoMT",
    "agreeing_pixels",
    "compare_networks",
    "transformers_batch",
]

# Largest difference of logits, relative to the largest logit.
TOLERANCE = 1e-3


class TransformersEoMT(nn.Module):
    """``EomtForUniversalSegmentation``, or ``EomtDinov3ForUniversalSegmentation``, and
    ``EomtImageProcessor.post_process_panoptic_segmentation``.

    Args:
        model: an EoMT with a DINOv2 or DINOv3 backbone whose weights and settings are taken over,
            also the probabilities of masked attention.
        compile: "off", or a mode of ``torch.compile`` for the forward method of the network.

    Raises:
        UserError: if transformers is missing or cannot build this network.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: nn.Module, compile: str = "off") -> None:
        super().__init__()
        transformers = _transformers()
        if not isinstance(model, EoMT):
            raise UserError(
                f"transformers has no {type(model).__name__} like ours; leave --against "
                "transformers out or give configs with MODEL.META_ARCHITECTURE EoMT alone."
            )
        if model.test_mode != "square":
            raise UserError(
                f"INPUT.TEST_MODE is {model.test_mode!r}, but transformers' EoMT takes squares: "
                "add INPUT.TEST_MODE square or leave --against transformers out."
            )
        if model.mask_annealing is None:
            raise UserError(
                "transformers' EoMT always has masked attention: add MODEL.EOMT.MASKED_ATTENTION "
                "True or leave --against transformers out."
            )
        things = model.postprocessing.thing_ids or frozenset()
        config = transformers_config(model, [], things)
        weights = to_transformers(model.state_dict(), model.criterion.no_object_weight)
        self.network = _build(transformers, config, weights)
        self.network.to(model.device).train(model.training)
        self._call = self.network.forward
        if compile != "off":
            self._call = torch.compile(self.network.forward, mode=compile)
        side = model.image_size
        self.processor = transformers.EomtImageProcessor(
            size={"shortest_edge": side, "longest_edge": side}, do_pad=True
        )
        self.side, self.stuff_ids = side, sorted(set(range(model.num_classes)) - set(things))
        post = model.postprocessing
        self._thresholds = dict(
            threshold=post.score_threshold, overlap_mask_area_threshold=post.overlap_threshold
        )
        self.register_buffer("pixel_mean", model.pixel_mean.clone(), persistent=False)
        self.register_buffer("pixel_std", model.pixel_std.clone(), persistent=False)
        self.train(model.training)

    def predict(self, images: Tensor) -> list[MaskPrediction]:
        """Normalised images (B, 3, H, W) to the final prediction."""
        output = self._call(pixel_values=images)
        return [MaskPrediction(output.masks_queries_logits, output.class_queries_logits)]

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Detectron2's contract.

        Args:
            batched_inputs: as for our models in evaluation; for training see
                :func:`transformers_batch`.

        Returns:
            In training ``loss``; otherwise per image ``panoptic_seg``, the processor's own
            segmentation ((height, width), -1 being void) and ``segments_info``.
        """
        pixels = self.prepare([x["image"] for x in batched_inputs])
        if self.training:
            output = self._call(
                pixel_values=pixels,
                mask_labels=[x["mask_labels"] for x in batched_inputs],
                class_labels=[x["class_labels"] for x in batched_inputs],
            )
            return {"loss": output.loss}
        masks, classes = self.predict(pixels)[-1]
        results = self.processor.post_process_panoptic_segmentation(
            SimpleNamespace(masks_queries_logits=masks, class_queries_logits=classes),
            target_sizes=[(x["height"], x["width"]) for x in batched_inputs],
            stuff_classes=self.stuff_ids,
            **self._thresholds,
        )
        return [{"panoptic_seg": (r["segmentation"], r["segments_info"])} for r in results]

    def prepare(self, images: Sequence[Tensor]) -> Tensor:
        """(3, h, w) images of [0, 255], padded to the square and normalised, as ours are."""
        padded = [F.pad(x, (0, self.side - x.shape[2], 0, self.side - x.shape[1])) for x in images]
        return (torch.stack(padded) - self.pixel_mean) / self.pixel_std


def transformers_batch(batch: Sequence[dict]) -> list[dict]:
    """Training inputs with the targets that transformers takes: float masks and class labels."""
    return [
        {
            "image": x["image"],
            "mask_labels": x["instances"].gt_masks.tensor.float(),
            "class_labels": x["instances"].gt_classes,
        }
        for x in batch
    ]


class Agreement(NamedTuple):
    """How far two networks are from each other on the same images, relative to the largest logit.

    Attributes:
        mask_logits, class_logits: largest difference of the final prediction's.
    """

    mask_logits: float
    class_logits: float


@torch.no_grad()
def compare_networks(ours: EoMT, theirs: TransformersEoMT, images: Sequence[Tensor]) -> Agreement:
    """Check in float32 that both networks are the same function.

    Args:
        ours: an EoMT in evaluation mode.
        theirs: made from it, in evaluation mode.
        images: uint8 (3, h, w) of at most the square input.

    Raises:
        UserError: if a difference is above ``TOLERANCE``.
    """
    pixels = theirs.prepare(images)
    expected, actual = ours.predict(pixels)[-1], theirs.predict(pixels)[-1]
    agreement = Agreement(
        *(
            ((a - e).abs().max() / e.abs().max()).item()
            for e, a in zip(expected, actual, strict=True)
        )
    )
    # A NaN is no agreement either.
    if not max(agreement) <= TOLERANCE or agreement.mask_logits != agreement.mask_logits:
        raise UserError(
            f"The EoMT of transformers {_transformers().__version__} is another function than ours "
            f"with the same weights (mask logits differ by {agreement.mask_logits:.1e}, class "
            f"logits by {agreement.class_logits:.1e} of the largest), so there is nothing to "
            "compare."
        )
    return agreement


def agreeing_pixels(ours: Sequence[dict], theirs: Sequence[dict]) -> float:
    """The part of all pixels, in [0, 1], that two panoptic results give the same class, or void.

    Args:
        ours: results of our model.
        theirs: results of :class:`TransformersEoMT` for the same images.
    """
    same, pixels = 0.0, 0
    for our, their in zip(ours, theirs, strict=True):
        segmentation, segments = our["panoptic_seg"]
        expected = _class_map(segmentation, {s["id"]: s["category_id"] for s in segments})
        segmentation, segments = their["panoptic_seg"]
        actual = _class_map(segmentation, {s["id"]: s["label_id"] for s in segments})
        same += (expected == actual).sum().item()
        pixels += expected.numel()
    return same / pixels


def _class_map(segmentation: Tensor, class_of_segment: dict[int, int]) -> Tensor:
    classes = torch.full_like(segmentation, -1, dtype=torch.int64)
    for segment, label in class_of_segment.items():
        classes[segmentation == segment] = label
    return classes


def _build(transformers: ModuleType, config: dict, weights: dict[str, Tensor]) -> nn.Module:
    dinov3 = config["model_type"] == "eomt_dinov3"
    name = "EomtDinov3" if dinov3 else "Eomt"
    if not hasattr(transformers, f"{name}ForUniversalSegmentation"):
        raise UserError(
            f"transformers {transformers.__version__} has no {name}ForUniversalSegmentation: run "
            "`pip install --upgrade transformers`."
        )
    settings = {k: v for k, v in config.items() if k not in ("architectures", "thing_ids")}
    network = getattr(transformers, f"{name}ForUniversalSegmentation")(
        getattr(transformers, f"{name}Config")(**settings)
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(
            f"transformers' EoMT does not take the weights of this one ({first}); it knows a "
            "square input of INPUT.IMAGE_SIZE and DINOv2's and DINOv3's ViTs alone."
        ) from error
    return network


def _transformers() -> ModuleType:
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise UserError(
            "--against transformers needs the package transformers, which is not installed: run "
            "`pip install transformers`."
        ) from error

"""What Mask2Former's released configs can say and this package cannot do."""

from collections.abc import Iterator

from detectron2.config import CfgNode

__all__ = ["released_mask2former_problems"]

# Its mappers are five; here one mapper is told the ground truth.
MAPPERS = {
    "mask_former_semantic": "semantic",
    "mask_former_instance": "instance",
    "mask_former_panoptic": "panoptic",
    "coco_instance_lsj": "instance",
    "coco_panoptic_lsj": "panoptic",
}
# Key -> (the value that is supported, what is done instead of the others).
ONLY = {
    "INPUT.COLOR_AUG_SSD": (False, "the jitter of EoMT's recipes is INPUT.COLOR_JITTER"),
    "INPUT.CROP.ENABLED": (False, "crops are INPUT.IMAGE_SIZE wide, INPUT.CROP_HEIGHT high"),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": (1.0, "crops are not drawn again for their classes"),
    "SOLVER.POLY_LR_CONSTANT_ENDING": (0.0, "the rate decays to 0"),
}
ONLY_OF_MASK2FORMER = {
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": (True, "every prediction is supervised"),
    "MODEL.MASK_FORMER.DROPOUT": (0.0, "the decoder has no dropout"),
    "MODEL.MASK_FORMER.PRE_NORM": (False, "the decoder normalises after each part"),
    "MODEL.MASK_FORMER.ENC_LAYERS": (0, "the encoder is the pixel decoder's"),
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": (False, "the decoder reads the maps as they are"),
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": (
        "multi_scale_pixel_decoder",
        "the decoder reads the maps of the pixel decoder",
    ),
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": (
        "MultiScaleMaskedTransformerDecoder",
        "there is one transformer decoder",
    ),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": (4, "masks are made at stride 4"),
    "MODEL.SEM_SEG_HEAD.NORM": ("GN", "the pixel decoder has group normalisation"),
}


def released_mask2former_problems(cfg: CfgNode) -> Iterator[str]:
    """Sentences that name the key, its value, and what is supported.

    Args:
        cfg: of a model that classifies masks.
    """
    mapper = cfg.INPUT.DATASET_MAPPER_NAME
    if mapper in MAPPERS:
        yield (
            f"INPUT.DATASET_MAPPER_NAME is {mapper!r}; here one mapper serves all, and this key "
            f"says what to train on: set it to {MAPPERS[mapper]!r}."
        )
    only = dict(ONLY)
    if cfg.MODEL.META_ARCHITECTURE == "Mask2Former":
        only |= ONLY_OF_MASK2FORMER
        yield from _width_problems(cfg)
    for key, (supported, why) in only.items():
        value = cfg
        for name in key.split("."):
            value = value[name]
        if value != supported:
            yield f"{key} is {value!r}; only {supported!r} is supported: {why}."
    test = cfg.MODEL.MASK_FORMER.TEST
    if test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE and test.SEMANTIC_ON:
        yield (
            "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE is True, but semantic "
            "scores are made at the size of the network's input and then resized; set it to False."
        )


def _width_problems(cfg: CfgNode) -> Iterator[str]:
    """Mask2Former's code has one width for each decoder; in all its configs they are equal."""
    dim, head = cfg.MODEL.MASK_FORMER.HIDDEN_DIM, cfg.MODEL.SEM_SEG_HEAD
    # The defaults say nothing; Detectron2's own heads read the first.
    for key, unset in (("CONVS_DIM", 128), ("MASK_DIM", 256)):
        if head[key] not in (unset, dim):
            yield (
                f"MODEL.SEM_SEG_HEAD.{key} is {head[key]}; both decoders and the mask features "
                f"have MODEL.MASK_FORMER.HIDDEN_DIM {dim} channels: give the same number."
            )
    heads = head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS
    if heads < 1 or dim % heads:
        yield (
            f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS is {heads}; it must divide "
            f"MODEL.MASK_FORMER.HIDDEN_DIM {dim}."
        )

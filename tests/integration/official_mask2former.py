"""A stand-in for the official ``mask2former`` package: what importing it registers, and the keys
that its ``add_maskformer2_config`` adds, by their public names. It computes nothing."""

from detectron2.config import CfgNode as CN
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

MODELS = {
    META_ARCH_REGISTRY: ("MaskFormer",),
    BACKBONE_REGISTRY: ("D2SwinTransformer",),
    SEM_SEG_HEADS_REGISTRY: (
        "MaskFormerHead",
        "PerPixelBaselineHead",
        "BasePixelDecoder",
        "MSDeformAttnPixelDecoder",
    ),
}
DATASETS = tuple(
    name.format(split)
    for split in ("train", "val")
    for name in (
        "coco_2017_{}_panoptic_with_sem_seg",
        "ade20k_panoptic_{}",
        "ade20k_instance_{}",
        "ade20k_full_sem_seg_{}",
        "mapillary_vistas_panoptic_{}",
    )
)


def register():
    """What happens when the package is imported."""
    for registry, names in MODELS.items():
        for name in names:
            registry.register(type(name, (), {}))
    for name in DATASETS:
        DatasetCatalog.register(name, their_records)
        MetadataCatalog.get(name).set(owner="mask2former")


def coco_metadata():
    """Of ``coco_2017_*_panoptic_with_sem_seg``, the files at their usual places."""
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    names = [category["name"] for category in COCO_CATEGORIES]
    return dict(
        thing_classes=names,
        stuff_classes=names,
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(things)},
        stuff_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(COCO_CATEGORIES)},
        sem_seg_root="coco/panoptic_semseg_val2017",
        panoptic_root="coco/panoptic_val2017",
        panoptic_json="coco/annotations/panoptic_val2017.json",
        json_file="coco/annotations/instances_val2017.json",
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
    )


def their_records():
    return []


def add_maskformer2_config(cfg):
    """The keys and their defaults; ``MODEL.MASK_FORMER`` is replaced by a new node."""
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.COLOR_AUG_SSD = False
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0

    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0

    node = cfg.MODEL.MASK_FORMER = CN()
    node.DEEP_SUPERVISION = True
    node.NO_OBJECT_WEIGHT = 0.1
    node.CLASS_WEIGHT = 1.0
    node.DICE_WEIGHT = 1.0
    node.MASK_WEIGHT = 20.0
    node.NHEADS = 8
    node.DROPOUT = 0.1
    node.DIM_FEEDFORWARD = 2048
    node.ENC_LAYERS = 0
    node.DEC_LAYERS = 6
    node.PRE_NORM = False
    node.HIDDEN_DIM = 256
    node.NUM_OBJECT_QUERIES = 100
    node.TRANSFORMER_IN_FEATURE = "res5"
    node.ENFORCE_INPUT_PROJ = False
    node.SIZE_DIVISIBILITY = 32
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    node.TRAIN_NUM_POINTS = 112 * 112
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75
    node.TEST = CN()
    node.TEST.SEMANTIC_ON = True
    node.TEST.INSTANCE_ON = False
    node.TEST.PANOPTIC_ON = False
    node.TEST.OBJECT_MASK_THRESHOLD = 0.0
    node.TEST.OVERLAP_THRESHOLD = 0.0
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False

    head = cfg.MODEL.SEM_SEG_HEAD
    head.MASK_DIM = 256
    head.TRANSFORMER_ENC_LAYERS = 0
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8

    cfg.MODEL.SWIN = CN(
        dict(
            PRETRAIN_IMG_SIZE=224,
            PATCH_SIZE=4,
            EMBED_DIM=96,
            DEPTHS=[2, 2, 6, 2],
            NUM_HEADS=[3, 6, 12, 24],
            WINDOW_SIZE=7,
            MLP_RATIO=4.0,
            QKV_BIAS=True,
            QK_SCALE=None,
            DROP_RATE=0.0,
            ATTN_DROP_RATE=0.0,
            DROP_PATH_RATE=0.3,
            APE=False,
            PATCH_NORM=True,
            OUT_FEATURES=["res2", "res3", "res4", "res5"],
            USE_CHECKPOINT=False,
        )
    )

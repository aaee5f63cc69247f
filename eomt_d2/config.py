"""Every configuration key that eomt_d2 adds to Detectron2, with its default and its meaning."""

from collections.abc import Iterator

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

__all__ = ["add_eomt_config", "config_keys", "missing_keys"]


def add_eomt_config(cfg: CN) -> None:
    """Add the keys of this package to a Detectron2 config, in place.

    Key names that users of Mask2Former know are kept (``MODEL.MASK_FORMER.*``, ``INPUT.*``). Some
    of Detectron2's own defaults become those of the recipe: RGB instead of BGR, clipping of the
    total gradient norm, no grouping of images by aspect ratio.

    Where the official ``mask2former`` package adds its keys too, this comes after its
    ``add_maskformer2_config``, which replaces the node ``MODEL.MASK_FORMER``: then the config has
    the keys of both, and those that both have get the values here. It may be called again.

    Args:
        cfg: a config made by :func:`detectron2.config.get_cfg`.
    """
    _add_input(cfg)
    _add_mask_former(cfg)
    _add_mask2former(cfg)
    _add_released_mask2former(cfg)
    _add_vit(cfg)
    _add_solver(cfg)
    _add_test(cfg)
    _add_datasets(cfg)


def missing_keys(cfg: CN) -> list[str]:
    """Keys that :func:`add_eomt_config` adds and a config lacks, because something replaced them
    afterwards."""
    complete = get_cfg()
    add_eomt_config(complete)
    present = set(config_keys(cfg))
    return [key for key in config_keys(complete) if key not in present]


def config_keys(node: CN, prefix: str = "") -> Iterator[str]:
    """Every key that holds a value, in full: "MODEL.MASK_FORMER.NHEADS"."""
    for name, value in node.items():
        if isinstance(value, CN):
            yield from config_keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _add_input(cfg: CN) -> None:
    # Ground truth to train on: "panoptic", "instance", "semantic", or "auto" (the richest of
    # these three that the data set has).
    cfg.INPUT.DATASET_MAPPER_NAME = "auto"
    cfg.INPUT.FORMAT = "RGB"
    # Ground-truth masks of training samples: Detectron2's "bitmask", which its own architectures
    # take, or one bool "tensor" (M, H, W), which the original code of MaskFormer and Mask2Former
    # takes; ours takes both. "polygon" means "bitmask" here: masks are rasterised before the crop.
    cfg.INPUT.MASK_FORMAT = "bitmask"
    # Side of the square training crop, in pixels; also the side of square and window inference.
    cfg.INPUT.IMAGE_SIZE = 640
    # Height of training crops that are IMAGE_SIZE wide but no squares; 0 means squares.
    cfg.INPUT.CROP_HEIGHT = 0
    # Scale jitter: s ~ U(MIN_SCALE, MAX_SCALE); at s = 1 the "long" side fits IMAGE_SIZE, or the
    # "short" one (Mask2Former's own semantic recipes).
    cfg.INPUT.SCALE_FIT = "long"
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    # Photometric jitter of the published ADE20K and Cityscapes recipes.
    cfg.INPUT.COLOR_JITTER = False
    # How an image meets the network at test time:
    #   square:    fits inside IMAGE_SIZE x IMAGE_SIZE, padded right and bottom
    #   divisible: padded only to a multiple of SIZE_DIVISIBILITY
    #   window:    short side = IMAGE_SIZE, overlapping square windows along the long side
    cfg.INPUT.TEST_MODE = "square"
    # For "divisible"; 0 means MODEL.MASK_FORMER.SIZE_DIVISIBILITY, and if that is 0 too the
    # backbone's own size_divisibility (its patch size).
    cfg.INPUT.SIZE_DIVISIBILITY = 0
    # An image whose segments all fall outside the crop: "redraw" the augmentation (published) or
    # "keep" the image as a negative.
    cfg.INPUT.EMPTY_SAMPLES = "redraw"
    # Segments that the crop leaves without a pixel: "drop", or "keep" as targets with empty masks
    # (Mask2Former's own panoptic recipe).
    cfg.INPUT.EMPTIED_SEGMENTS = "drop"
    # Value of padded pixels in training crops, in the range of the image (Mask2Former's own recipes
    # pad with 128), and whether what is added to suit the network comes after the normalisation, so
    # that it has the mean colour, instead of before, so that it is black.
    cfg.INPUT.PAD_VALUE = 0
    cfg.INPUT.PAD_AFTER_NORMALIZATION = False

    cfg.MODEL.PIXEL_MEAN = [123.675, 116.280, 103.530]
    cfg.MODEL.PIXEL_STD = [58.395, 57.120, 57.375]


def _add_mask_former(cfg: CN) -> None:
    """Queries, losses, thresholds and mask annealing: shared by both networks."""
    node = cfg.MODEL.setdefault("MASK_FORMER", CN())
    node.NUM_OBJECT_QUERIES = 200

    # Weights of the loss terms, and of the "no object" class inside the cross-entropy.
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    node.NO_OBJECT_WEIGHT = 0.1
    # Weight of the class term in the matching cost; 0 means CLASS_WEIGHT, as published. The mask
    # terms weigh the same in both.
    node.COST_CLASS_WEIGHT = 0.0
    # Points per mask at which mask losses and matching costs are computed.
    node.TRAIN_NUM_POINTS = 12544
    # What the mask losses of a batch are divided by: the number of "matched" masks, at most one per
    # query, or of all "segments" (Mask2Former's own); they differ only in images with more segments
    # than queries.
    node.LOSS_NORMALIZER = "matched"
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75

    # Mask annealing (EoMT, section 3.3; Mask2Former only where it is asked to, see
    # MODEL.MASK2FORMER). SCHEDULE says what STARTS and ENDS, one entry per masked block, are:
    #   staggered:  the published evenly staggered windows for SOLVER.MAX_ITER; both stay empty
    #   fractions:  fractions of SOLVER.MAX_ITER
    #   iterations: absolute iterations
    #   none:       masks are never annealed
    node.MASK_ANNEALING = CN()
    node.MASK_ANNEALING.SCHEDULE = "staggered"
    node.MASK_ANNEALING.STARTS = []
    node.MASK_ANNEALING.ENDS = []
    node.MASK_ANNEALING.POWER = 0.9

    test = node.setdefault("TEST", CN())
    test.SEMANTIC_ON = False
    test.INSTANCE_ON = False
    test.PANOPTIC_ON = False
    # Panoptic: a query needs a class score above the first; a segment must keep at least the
    # second as its share of its own mask.
    test.OBJECT_MASK_THRESHOLD = 0.8
    test.OVERLAP_THRESHOLD = 0.8

    # Query blocks of EoMT; 0 means the number that belongs to the backbone preset.
    cfg.MODEL.EOMT = CN()
    cfg.MODEL.EOMT.NUM_BLOCKS = 0
    # False trains without masks and supervises the last prediction alone (the paper's ablation).
    cfg.MODEL.EOMT.MASKED_ATTENTION = True

    # Semantic results: "scores" (K, height, width), or "labels" (height, width), which needs
    # K times less memory and is all that mIoU needs.
    cfg.TEST.SEMANTIC_OUTPUT = "scores"
    # Instances kept per image.
    cfg.TEST.DETECTIONS_PER_IMAGE = 100
    # Package that computes the AP of COCO instances: the official "pycocotools", or
    # "faster_coco_eval" (pip install faster-coco-eval), which gives the same numbers in C++.
    cfg.TEST.COCO_EVALUATOR = "pycocotools"
    # The network's precision in inference: "float32", or mixed precision in "float16" (GPUs only)
    # or "bfloat16", as published results were evaluated. Results are made in float32.
    cfg.TEST.PRECISION = "float32"

    # torch.compile of the network, in training and inference: "off", "default", "reduce-overhead"
    # (CUDA graphs) or "max-autotune" (these, and kernels chosen by measurement). It takes minutes,
    # once for each size of input; inference in TEST_MODE "divisible" is left out.
    cfg.MODEL.COMPILE = "off"


def _add_mask2former(cfg: CN) -> None:
    """The decoders of Mask2Former. The names are those of its own configs where it has one.

    With these keys the network loses one part after the other until EoMT is left (EoMT, section
    3.1 and table 1): backbone "ViTAdapter"; backbone "ViT"; PIXEL_DECODER_NAME "none"; key maps
    ["res4"] alone; META_ARCHITECTURE "EoMT".
    """
    node = cfg.MODEL.MASK_FORMER
    # Channels of both decoders, heads, and hidden width of the transformer decoder's networks.
    node.HIDDEN_DIM = 256
    node.NHEADS = 8
    node.DIM_FEEDFORWARD = 2048
    # Predictions of the transformer decoder, which is one more than its layers.
    node.DEC_LAYERS = 10

    head = cfg.MODEL.SEM_SEG_HEAD
    # "none" leaves the pixel decoder out: one 1x1 convolution per map.
    head.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    head.TRANSFORMER_ENC_LAYERS = 6
    # Points and heads of its deformable attention.
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    # The maps that queries attend to, with or without pixel decoder; stride 4 ("res2") is what
    # masks are made from.
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]

    cfg.MODEL.MASK2FORMER = CN()
    # True anneals the decoder's masks by MASK_FORMER.MASK_ANNEALING, one window per layer. False
    # masks throughout, as published, whatever the schedule there.
    cfg.MODEL.MASK2FORMER.ANNEAL_MASKS = False

    # Backbone "ViTAdapter": the ViT of MODEL.VIT and its adapter.
    node = cfg.MODEL.VIT_ADAPTER = CN()
    # "SyncBN" (over all processes on GPUs, else as "BN"), "BN", "GN" or "LN".
    node.NORM = "SyncBN"
    # Of deformable attention: heads (0 means the ViT's), points per head and map, and the width of
    # its values over the ViT's.
    node.NUM_HEADS = 0
    node.NUM_POINTS = 4
    node.VALUE_RATIO = 0.5

    # Backbone "ViTFeaturePyramid": the maps made from the last layer of MODEL.VIT. Mask2Former
    # over the backbone "ViT" makes what it needs by itself.
    cfg.MODEL.VIT_PYRAMID = CN()
    cfg.MODEL.VIT_PYRAMID.OUT_FEATURES = ["res2", "res3", "res4", "res5"]


def _add_released_mask2former(cfg: CN) -> None:
    """Keys of Mask2Former's released configs that have one value here, or none; so those configs
    can be read, and eomt_d2/engine/released_mask2former.py says what is not supported."""
    node = cfg.MODEL.MASK_FORMER
    node.DEEP_SUPERVISION = True
    node.DROPOUT = 0.0
    node.PRE_NORM = False
    node.ENC_LAYERS = 0
    node.ENFORCE_INPUT_PROJ = False
    node.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # For INPUT.TEST_MODE "divisible", where INPUT.SIZE_DIVISIBILITY is 0.
    node.SIZE_DIVISIBILITY = 0
    # Panoptic and instance results are always made from logits of the original size.
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
    # Channels of the mask features, here always those of MASK_FORMER.HIDDEN_DIM.
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 256
    cfg.INPUT.COLOR_AUG_SSD = False
    # What Detectron2's DeepLab or the official package may have added, and read, stays as it is.
    cfg.INPUT.CROP.setdefault("SINGLE_CATEGORY_MAX_AREA", 1.0)
    cfg.SOLVER.setdefault("POLY_LR_CONSTANT_ENDING", 0.0)
    # Not read by Detectron2's ResNet, but in every config of it.
    cfg.MODEL.RESNETS.setdefault("STEM_TYPE", "basic")
    cfg.MODEL.RESNETS.setdefault("RES5_MULTI_GRID", [1, 1, 1])
    # Of a Swin Transformer, which comes from another package or not at all.
    node = cfg.MODEL.setdefault("SWIN", CN())
    for key, value in {
        "PRETRAIN_IMG_SIZE": 224,
        "PATCH_SIZE": 4,
        "EMBED_DIM": 96,
        "DEPTHS": [2, 2, 6, 2],
        "NUM_HEADS": [3, 6, 12, 24],
        "WINDOW_SIZE": 7,
        "MLP_RATIO": 4.0,
        "QKV_BIAS": True,
        "QK_SCALE": None,
        "DROP_RATE": 0.0,
        "ATTN_DROP_RATE": 0.0,
        "DROP_PATH_RATE": 0.3,
        "APE": False,
        "PATCH_NORM": True,
        "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "USE_CHECKPOINT": False,
    }.items():
        node.setdefault(key, value)


def _add_vit(cfg: CN) -> None:
    node = cfg.MODEL.VIT = CN()
    # A preset of eomt_d2/modeling/backbone/presets.py, or "" to give every size below.
    node.NAME = "vit_large_patch14_reg4_dinov2"
    node.PATCH_SIZE = 16
    # Side in pixels whose grid the learned position embedding has; 0 means INPUT.IMAGE_SIZE.
    node.IMG_SIZE = 0
    # Sizes; 0 (or "") means the preset's.
    node.EMBED_DIM = 0
    node.DEPTH = 0
    node.NUM_HEADS = 0
    node.MLP_RATIO = 0.0
    # "mlp" (GELU), "swiglu" (DINOv2's giant) or "swiglu_subln" (EVA-02)
    node.FFN = ""
    node.NUM_REGISTERS = -1  # -1 means the preset's
    # "learned", "rotary" (DINOv3) or "eva02" (learned, and EVA-02's rotary)
    node.POSITION = ""
    node.LAYER_SCALE_INIT = -1.0  # 0 means no LayerScale; -1 means the preset's
    node.DROP_PATH_RATE = 0.0
    # True accepts weights that leave a part of the ViT as initialised; otherwise they are an error.
    node.ALLOW_PARTIAL_WEIGHTS = False
    # Recompute each block's activations in the backward pass instead of keeping them.
    node.ACTIVATION_CHECKPOINTING = False


def _add_solver(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    # Each iteration's batch of SOLVER.IMS_PER_BATCH images runs through the network in this many
    # equal parts, one after the other, for one update of the weights: the same gradient in a
    # fraction of the memory.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # A step whose loss or gradient is infinite or NaN leaves the weights alone. After this many of
    # them in a row the training stops. (Loss scaling in fp16 may need up to 17 when it starts.)
    cfg.SOLVER.MAX_SKIPPED_STEPS = 20
    # How many of the checkpoints model_<iteration>.pth are kept, the newest ones; 0 keeps all.
    # model_final.pth and model_best.pth are always kept.
    cfg.SOLVER.CHECKPOINT_KEEP = 0
    # Each backbone block's learning rate is this factor below that of the block after it.
    cfg.SOLVER.LAYER_DECAY = 0.8
    # All of a backbone learns at this factor of the rate it would have (Mask2Former's own: 0.1).
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Weight decay of the parameters of normalisations and of embeddings (nn.Embedding: queries,
    # their positions, levels of the decoder); below 0 it is WEIGHT_DECAY's, as published for EoMT.
    cfg.SOLVER.WEIGHT_DECAY_NORM = -1.0
    cfg.SOLVER.WEIGHT_DECAY_EMBED = -1.0
    # True: the blocks that see the queries learn at the full rate (DINOv3 recipes).
    cfg.SOLVER.QUERY_BLOCKS_FULL_LR = False
    # New parameters warm up first while the backbone waits; then the backbone warms up.
    cfg.SOLVER.LR_SCHEDULER_NAME = "TwoStageWarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS_HEAD = 500
    cfg.SOLVER.WARMUP_ITERS_BACKBONE = 1000
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0
    # "float16" (with loss scaling) or "bfloat16", where SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.PRECISION = "float16"


def _add_test(cfg: CN) -> None:
    # Metric of the periodic evaluations (TEST.EVAL_PERIOD), as it is logged, whose highest value
    # decides which weights are kept in model_best.pth, for example "panoptic_seg/PQ"; "": none.
    cfg.TEST.BEST_METRIC = ""


def _add_datasets(cfg: CN) -> None:
    # Data sets described in the config itself: a list of dicts, see datasets/README.md.
    cfg.DATASETS.REGISTER = []
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    # A training image that cannot be used (its file, its annotations): "raise" stops the training,
    # "skip" logs it and takes another image.
    cfg.DATALOADER.ON_BAD_SAMPLE = "raise"

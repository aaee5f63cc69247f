"""Networks that are not ours through the same trainer, data and evaluation: Detectron2's Mask R-CNN
over our ViT, its semantic FPN over its own ResNet, and one that takes and gives what MaskFormer
does."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from eomt_d2.checkpoint import Checkpointer
from eomt_d2.data.datasets.shapes import make_shapes
from eomt_d2.engine import Trainer, load_config

SIDE = 64
COMMON = (
    "MODEL.DEVICE", "cpu", "MODEL.PIXEL_MEAN", [128.0] * 3, "MODEL.PIXEL_STD", [64.0] * 3,
    "INPUT.IMAGE_SIZE", SIDE, "INPUT.MIN_SIZE_TEST", SIDE, "INPUT.MAX_SIZE_TEST", SIDE,
    "INPUT.MIN_SCALE", 1.0, "INPUT.MAX_SCALE", 1.0, "SOLVER.IMS_PER_BATCH", 4,
    "SOLVER.BASE_LR", 0.002, "SOLVER.LAYER_DECAY", 1.0, "SOLVER.MAX_ITER", 40,
    "SOLVER.WARMUP_ITERS_HEAD", 2, "SOLVER.WARMUP_ITERS_BACKBONE", 2, "DATALOADER.NUM_WORKERS", 0,
)  # fmt: skip
TINY_VIT = (
    "MODEL.VIT.NAME", "", "MODEL.VIT.EMBED_DIM", 32, "MODEL.VIT.DEPTH", 2, "MODEL.VIT.NUM_HEADS", 2,
    "MODEL.VIT.PATCH_SIZE", 8, "MODEL.VIT.LAYER_SCALE_INIT", 0.0,
)  # fmt: skip
TINY_RESNET = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0,
)  # fmt: skip
MASK_RCNN = (
    *TINY_VIT, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.MASK_ON", True,
    "MODEL.BACKBONE.NAME", "ViTFeaturePyramid", "MODEL.VIT_PYRAMID.OUT_FEATURES", ["res2", "res3"],
    "MODEL.ANCHOR_GENERATOR.SIZES", [[12], [24]],
    "MODEL.RPN.IN_FEATURES", ["res2", "res3"], "MODEL.ROI_HEADS.IN_FEATURES", ["res2", "res3"],
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", 5,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32,
    "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 5,
    "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7,
    "DATASETS.TRAIN", ("shapes_train_instance",), "DATASETS.TEST", ("shapes_val_instance",),
)  # fmt: skip
SEMANTIC_FPN = (
    *TINY_RESNET, "MODEL.META_ARCHITECTURE", "SemanticSegmentor",
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3"],
    "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead", "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 8, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
    "DATASETS.TRAIN", ("shapes_train_semantic",), "DATASETS.TEST", ("shapes_val_semantic",),
)  # fmt: skip
PANOPTIC_DATA = (
    "DATASETS.TRAIN", ("shapes_train_panoptic",), "DATASETS.TEST", ("shapes_val_panoptic",),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 8, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True,
)  # fmt: skip


class LikeMaskFormer(nn.Module):
    """The contract of MaskFormer's original code: masks are one tensor, which it pads itself, and
    results have the size that the input asks for. It says nothing about ``required_targets``."""

    def __init__(self, cfg):
        super().__init__()
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1), False)
        self.backbone = nn.Conv2d(3, 24, 5, padding=2)
        self.head = nn.Conv2d(24, num_classes, 5, padding=2)

    def forward(self, batched_inputs):
        images = torch.stack([x["image"].to(self.pixel_mean.device) for x in batched_inputs])
        logits = self.head(self.backbone((images - self.pixel_mean) / 64).relu())
        if not self.training:
            return [
                {"sem_seg": F.interpolate(each[None], (x["height"], x["width"]))[0].softmax(0)}
                for each, x in zip(logits, batched_inputs, strict=True)
            ]
        targets = torch.zeros_like(logits)
        for target, x in zip(targets, batched_inputs, strict=True):
            masks = x["instances"].gt_masks
            padded = torch.zeros(masks.shape[0], *logits.shape[-2:], dtype=masks.dtype)
            padded[:, : masks.shape[1], : masks.shape[2]] = masks
            for mask, category in zip(padded, x["instances"].gt_classes, strict=True):
                target[category] += mask
        return {"loss_mask": F.binary_cross_entropy_with_logits(logits, targets)}


@pytest.fixture
def like_maskformer():
    META_ARCH_REGISTRY.register(LikeMaskFormer)
    yield
    del META_ARCH_REGISTRY._obj_map["LikeMaskFormer"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_shapes(root / "shapes", num_train=12, num_val=3, num_workers=1)
    return root


@pytest.fixture
def train(shapes, tmp_path, monkeypatch, catalogs):
    """Trains by a config and gives the total loss, as the mean of the first and of the last five
    iterations, and the results, which a model that reads the checkpoint has as well."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))

    def run(*opts):
        opts = [*COMMON, *opts, "OUTPUT_DIR", str(tmp_path)]
        cfg = load_config(argparse.Namespace(config_file="", opts=opts, eval_only=False))
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        results = trainer.train()
        reloaded = Trainer.build_model(cfg)
        Checkpointer(reloaded).load(str(tmp_path / "model_final.pth"))
        # As text, because a NaN is unlike itself.
        assert repr(Trainer.test(cfg, reloaded)) == repr(results)
        losses = [value for value, _ in trainer.storage.history("total_loss").values()]
        return sum(losses[:5]) / 5, sum(losses[-5:]) / 5, results

    return run


# In the comments: what was seen.
def test_mask_rcnn_over_the_vit(train):
    before, after, results = train(*MASK_RCNN)
    assert after < 0.75 * before  # 2.3 of 4.0
    assert results.keys() == {"segm", "bbox"}
    assert results["segm"]["AP50"] > 0 and results["bbox"]["AP50"] > 0  # 13.8, 10.5


# One class everywhere would have a mean IoU of 1/8 of its share of all pixels, so less than 5 %.
def test_semantic_fpn(train):
    before, after, results = train(*SEMANTIC_FPN)
    assert after < 0.75 * before  # 1.6 of 3.5
    assert results.keys() == {"sem_seg"}
    assert results["sem_seg"]["mIoU"] > 5  # 13.8


def test_maskformers_contract(train, like_maskformer):
    before, after, results = train(
        *PANOPTIC_DATA, "MODEL.META_ARCHITECTURE", "LikeMaskFormer", "INPUT.MASK_FORMAT", "tensor"
    )
    assert after < 0.75 * before  # 0.26 of 0.61
    assert results.keys() == {"sem_seg"}
    assert results["sem_seg"]["mIoU"] > 5  # 8.7

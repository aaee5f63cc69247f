"""How images reach the network and results leave it, with a network whose answer is known."""

from unittest import mock

import cv2
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import BitMasks, Instances

from eomt_d2.config import add_eomt_config
from eomt_d2.data.build import build_test_loader
from eomt_d2.data.datasets import register_datasets
from eomt_d2.errors import UserError
from eomt_d2.modeling.criterion import MaskClassificationCriterion
from eomt_d2.modeling.mask_classification import MaskClassificationModel
from eomt_d2.modeling.matcher import HungarianMatcher
from eomt_d2.modeling.postprocessing import PostProcessing
from eomt_d2.modeling.structures import MaskPrediction
from tests.modeling.draws import same_points_for_all


class Bright(MaskClassificationModel):
    """Query 0 is where the first channel is bright; query 1 finds nothing. Keeps its input."""

    def predict(self, images, all_predictions=False):
        self.seen = images
        self.autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        masks = images[:, :1] * 10 - 5
        masks = torch.cat((masks, -masks.abs() - 9), 1)
        classes = torch.tensor([[0.0, 20, 0], [0, 0, 20]]).expand(len(images), -1, -1)
        return [MaskPrediction(masks, classes)]


def make(test_mode="square", size_divisibility=8, test_precision="float32", **postprocessing):
    postprocessing = postprocessing or dict(semantic_on=True, semantic_output="labels")
    return Bright(
        num_classes=2,
        num_queries=2,
        criterion=MaskClassificationCriterion(num_classes=2, matcher=HungarianMatcher()),
        postprocessing=PostProcessing(**postprocessing),
        pixel_mean=[100.0, 0, 0],
        pixel_std=[100.0, 1, 1],
        size_divisibility=size_divisibility,
        image_size=16,
        test_mode=test_mode,
        test_precision=test_precision,
    ).eval()


def image(height, width):
    """Bright (200) in the right half of the first channel."""
    x = torch.full((3, height, width), 100, dtype=torch.uint8)
    x[0, :, width // 2 :] = 200
    return x


def test_padding_is_black_before_normalisation():
    model = make()
    model([{"image": image(8, 16)}])
    assert model.seen.shape == (1, 3, 16, 16)
    assert model.seen[0, 0, 0].tolist() == [0.0] * 8 + [1.0] * 8  # (100 - 100) / 100, (200 - ...)
    assert model.seen[0, 0, 8:].unique().tolist() == [-1.0]  # (0 - 100) / 100


def test_padding_after_normalisation_has_the_mean_colour():
    model = make()
    model.pad_after_normalization = True
    model([{"image": image(8, 16)}])
    assert model.seen.shape == (1, 3, 16, 16)
    # (200 - 100) / 100 right, (100 - 100) / 100 left, and 0, the mean, in all rows below.
    assert model.seen[0, 0, :8].unique(dim=0).tolist() == [[0.0] * 8 + [1.0] * 8]
    assert (model.seen[0, 1, :8] == 100).all()
    assert (model.seen[0, :, 8:] == 0).all()


def test_results_have_the_original_size_without_padding():
    (result,) = make(panoptic_on=True, thing_ids={1})(
        [{"image": image(8, 16), "height": 24, "width": 48}]
    )
    panoptic, segments = result["panoptic_seg"]
    assert panoptic.shape == (24, 48)
    assert panoptic.dtype == torch.int32
    assert panoptic[:, :23].unique().tolist() == [0]
    assert panoptic[:, 25:].unique().tolist() == [1]
    assert [(s["id"], s["category_id"], s["isthing"]) for s in segments] == [(1, 1, True)]


def test_only_results_that_are_switched_on():
    inputs = [{"image": image(16, 16)}]
    assert set(make(instance_on=True)(inputs)[0]) == {"instances"}
    assert set(make(semantic_on=True)(inputs)[0]) == {"sem_seg"}
    both = make(panoptic_on=True, instance_on=True, thing_ids={0})(inputs)[0]
    assert set(both) == {"panoptic_seg", "instances"}
    assert set(both["instances"].pred_classes.tolist()) == {0}, "class 1 is stuff"


def test_divisible_pads_no_further_than_needed_and_batches_like_singles():
    model = make("divisible")
    inputs = [{"image": image(h, w)} for h, w in ((9, 16), (16, 9), (12, 14))]
    together = model(inputs)
    shapes = []
    for x, expected in zip(inputs, together, strict=True):
        (alone,) = model([x])
        shapes.append(tuple(model.seen.shape[-2:]))
        assert torch.equal(alone["sem_seg_labels"], expected["sem_seg_labels"])
    assert shapes == [(16, 16), (16, 16), (16, 16)]
    model([{"image": image(17, 33)}])
    assert model.seen.shape[-2:] == (24, 40)


def test_windows_slide_over_the_long_side():
    model = make("window")
    (result,) = model([{"image": image(16, 40), "height": 32, "width": 80}])
    assert model.seen.shape == (3, 3, 16, 16)  # ceil(40 / 16) windows
    labels = result["sem_seg_labels"]
    assert labels.shape == (32, 80)
    # Scores are sigmoid(-5) on the dark left half and sigmoid(5) on the right one, of class 1.
    scores = make("window", semantic_on=True)([{"image": image(16, 40)}])[0]["sem_seg"]
    assert scores.shape == (2, 16, 40)
    assert scores[1, :, :19].max() < 0.01
    assert scores[1, :, 21:].min() > 0.99


@pytest.mark.parametrize("test_mode", ["square", "divisible", "window"])
def test_precision_of_inference(test_mode):
    """The network runs in it, results do not, and training is left to the trainer."""
    model = make(test_mode, semantic_on=True)
    inputs = [{"image": image(16, 40 if test_mode == "window" else 16)}]
    (expected,) = model(inputs)
    assert model.autocast is False
    model.test_dtype = torch.bfloat16
    (actual,) = model(inputs)
    assert model.autocast == torch.bfloat16
    assert torch.equal(actual["sem_seg"], expected["sem_seg"])  # no layer of it is cast
    model.test_dtype = None
    with torch.autocast("cpu", torch.bfloat16):
        model(inputs)
    assert model.autocast == torch.bfloat16, "float32 leaves the caller's choice alone"
    model.train().test_dtype = torch.bfloat16
    model.criterion.forward = lambda *_: {}
    model([with_segments(1)])
    assert model.autocast is False


def test_unknown_precision():
    with pytest.raises(UserError, match="TEST.PRECISION is 'half'"):
        make(test_precision="half")


def test_an_image_larger_than_the_square_is_explained():
    with pytest.raises(UserError, match="17 x 4 pixels does not fit .* INPUT.MIN_SIZE_TEST"):
        make()([{"image": image(17, 4)}])
    with pytest.raises(UserError, match="12 x 40 pixels is not the window of INPUT.IMAGE_SIZE 16"):
        make("window")([{"image": image(12, 40)}])
    with pytest.raises(UserError, match="INPUT.TEST_MODE is 'sqare'"):
        make("sqare")


def test_training_pads_images_and_masks_alike():
    model = make().train()
    seen = {}
    model.criterion.forward = lambda _, targets, normalizers: seen.update(targets=targets) or {}
    instances = Instances((12, 20))
    instances.gt_classes = torch.tensor([1])
    instances.gt_masks = BitMasks(torch.ones(1, 12, 20, dtype=torch.bool))
    model([{"image": image(12, 20), "instances": instances}])
    (target,) = seen["targets"]
    assert model.seen.shape == (1, 3, 16, 24)
    assert target.masks.shape == (1, 16, 24)
    assert target.masks.sum() == 12 * 20
    instances.gt_masks = torch.ones(1, 12, 20, dtype=torch.bool)
    model([{"image": image(12, 20), "instances": instances}])
    assert torch.equal(seen["targets"][0].masks, target.masks)


def with_segments(count):
    instances = Instances((16, 16))
    instances.gt_classes = torch.zeros(count, dtype=torch.int64)
    instances.gt_masks = torch.ones(count, 16, 16, dtype=torch.bool)
    return {"image": image(16, 16), "instances": instances}


def test_normalizers_of_an_effective_batch():
    batch = [with_segments(count) for count in (3, 0, 1)]
    num_masks, class_weight_sum = make().loss_normalizers(batch)
    # Two queries: 2 + 0 + 1 of 6 are matched, and "no object" counts a tenth.
    assert num_masks.item() == 3
    assert class_weight_sum.item() == pytest.approx(3.3)


def test_losses_use_the_normalizers_of_the_effective_batch():
    model, batch = make().train(), [with_segments(1)]
    with mock.patch("torch.rand", same_points_for_all):
        alone = model(batch)
        part = model(batch, model.loss_normalizers(batch * 3))
    for name, loss in alone.items():
        assert part[name].item() == pytest.approx(loss.item() / 3)


def tiny_config(test_data, tmp_path):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DEVICE = "EoMT", "ViT", "cpu"
    vit = cfg.MODEL.VIT
    vit.NAME, vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS, vit.LAYER_SCALE_INIT = "", 32, 3, 2, 1.0
    cfg.MODEL.EOMT.NUM_BLOCKS = 1
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 20
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = 0.0
    cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.0
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 133
    cfg.INPUT.IMAGE_SIZE = cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 128
    cfg.DATALOADER.NUM_WORKERS = 0
    coco = test_data / "coco"
    cfg.DATASETS.REGISTER = [
        {
            "NAME": "predictor_test_coco",
            "TYPE": "coco_panoptic",
            "IMAGE_ROOT": str(coco / "val2017"),
            "PANOPTIC_ROOT": str(coco / "panoptic_val2017_mini"),
            "PANOPTIC_JSON": str(coco / "annotations/panoptic_val2017_mini.json"),
        }
    ]
    cfg.DATASETS.TEST = ("predictor_test_coco",)
    register_datasets(cfg)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.class_head.bias[-1] = -9.0
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg, model.eval()


def test_default_predictor_gives_what_the_evaluation_loader_gives(test_data, tmp_path):
    """Detectron2's predictor, unmodified, on the file; real COCO images, all channels in order."""
    cfg, model = tiny_config(test_data, tmp_path)
    predictor = DefaultPredictor(cfg)
    compared = 0
    for batch in build_test_loader(cfg, "predictor_test_coco"):
        with torch.no_grad():
            (expected,) = model(batch)
        actual = predictor(cv2.imread(batch[0]["file_name"]))
        assert len(expected["panoptic_seg"][1]) > 1
        different = (actual["panoptic_seg"][0] != expected["panoptic_seg"][0]).float().mean()
        # OpenCV and Pillow decode JPEG with the same library but may differ by rounding.
        assert different < 0.01
        compared += 1
    assert compared == 11


def test_importing_registers_models_and_nothing_else():
    import subprocess
    import sys

    from detectron2.modeling import BACKBONE_REGISTRY

    code = (
        "import detectron2.data, detectron2.modeling as m; d = set(detectron2.data.DatasetCatalog);"
        "a = {k for k, _ in m.META_ARCH_REGISTRY}; b = {k for k, _ in m.BACKBONE_REGISTRY};"
        "import eomt_d2;"
        "print(sorted({k for k, _ in m.META_ARCH_REGISTRY} - a),"
        "sorted({k for k, _ in m.BACKBONE_REGISTRY} - b), set(detectron2.data.DatasetCatalog) - d)"
    )
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    registered = "['EoMT', 'Mask2Former'] ['ViT', 'ViTAdapter', 'ViTFeaturePyramid'] set()"
    assert out.stdout.strip() == registered, out.stderr
    assert "EoMT" in META_ARCH_REGISTRY and "ViT" in BACKBONE_REGISTRY

"""The behaviour that release 0.6 loses on current PyTorch, NumPy, Pillow, setuptools and Python.

Each test fails on an unchanged 0.6; together they are what tools/install_detectron2.py promises.
Where Detectron2's main branch has an answer of its own, the test says so.
"""

import json
from pathlib import Path

import detectron2
import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg
from detectron2.data import DatasetCatalog, MapDataset, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.build import print_instances_class_histogram
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import SimpleTrainer, hooks
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.visualizer import Visualizer
from detectron2_wheel.substitutions import check_leftovers, is_main_branch
from omegaconf import OmegaConf
from PIL import Image

# Detectron2's own directory in site-packages, seen as the top of a source tree.
TREE = Path(detectron2.__file__).parent.parent
IS_MAIN_BRANCH = is_main_branch(TREE)


@pytest.fixture
def dataset_name():
    yield "tiny_dataset_of_this_test"
    if "tiny_dataset_of_this_test" in DatasetCatalog.list():
        DatasetCatalog.remove("tiny_dataset_of_this_test")
    MetadataCatalog.pop("tiny_dataset_of_this_test", None)


def test_none_of_the_faulty_constructs_is_left():
    check_leftovers(TREE)


class Quadratic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, data):
        return {"loss": (self.weight * data).pow(2).sum()}


class TestSchedule:
    """lr = 1 / (1 + iteration), a scheduler of PyTorch's own."""

    class RecordLR(hooks.HookBase):
        def __init__(self):
            self.values = []

        def before_step(self):
            self.values.append(self.trainer.optimizer.param_groups[0]["lr"])

    def trainer(self, directory):
        model = Quadratic()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 / (1 + i))
        trainer = SimpleTrainer(model, [torch.zeros(1)] * 100, optimizer)
        record = self.RecordLR()
        trainer.register_hooks([hooks.LRScheduler(optimizer, scheduler), record])
        checkpointer = DetectionCheckpointer(model, str(directory), trainer=trainer, sgd=optimizer)
        return trainer, checkpointer, record

    def test_resume_continues_it(self, tmp_path):
        trainer, checkpointer, record = self.trainer(tmp_path)
        trainer.train(0, 3)
        checkpointer.save("after_3")
        assert record.values == pytest.approx([1, 1 / 2, 1 / 3])

        trainer, checkpointer, record = self.trainer(tmp_path)
        checkpointer.resume_or_load("", resume=True)
        trainer.train(3, 5)
        assert record.values == pytest.approx([1 / 4, 1 / 5])


class TestCocoEvaluation:
    def test_perfect_boxes_without_compiled_operators(self, tmp_path, dataset_name):
        categories = [{"id": 1, "name": "circle"}, {"id": 2, "name": "square"}]
        annotations = [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 10, 40, 40]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [60, 20, 30, 50]},
        ]
        for annotation in annotations:
            x, y, w, h = annotation["bbox"]
            annotation.update(area=w * h, iscrowd=0)
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        image = {"id": 7, "file_name": "7.png", "height": 100, "width": 100}
        (tmp_path / "gt.json").write_text(
            json.dumps({"images": [image], "annotations": annotations, "categories": categories})
        )
        register_coco_instances(dataset_name, {}, str(tmp_path / "gt.json"), str(tmp_path))
        DatasetCatalog.get(dataset_name)  # fills the metadata

        evaluator = COCOEvaluator(dataset_name, output_dir=str(tmp_path / "out"))
        instances = Instances((100, 100))
        instances.pred_boxes = Boxes(torch.tensor([[10.0, 10, 50, 50], [60, 20, 90, 70]]))
        instances.scores = torch.tensor([0.9, 0.8])
        instances.pred_classes = torch.tensor([0, 1])
        evaluator.reset()
        evaluator.process([{"image_id": 7}], [{"instances": instances}])
        result = evaluator.evaluate()["bbox"]
        assert result["AP"] == pytest.approx(100)
        assert result["AP-circle"] == pytest.approx(100)


class TestModelZoo:
    def test_config_is_found_and_read(self):
        file = model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
        cfg = get_cfg()
        cfg.merge_from_file(file)
        assert cfg.MODEL.MASK_ON and cfg.SOLVER.MAX_ITER == 270000

    def test_unknown_config(self):
        with pytest.raises(RuntimeError, match="nothing.yaml not available"):
            model_zoo.get_config_file("nothing.yaml")


class TestMapDataset:
    def test_another_sample_takes_the_place_of_a_bad_one(self):
        dataset = MapDataset(list(range(10)), lambda x: x if x % 2 == 0 else None)
        assert dataset[4] == 4
        assert dataset[3] in (0, 2, 4, 6, 8)


class TestPillow:
    def test_extent_transform_uses_its_default_interpolation(self):
        image = np.arange(16, dtype=np.uint8).reshape(4, 4)
        # The top right quarter at its own size.
        result = T.ExtentTransform((2, 0, 4, 2), (2, 2)).apply_image(image)
        np.testing.assert_array_equal(result, [[2, 3], [6, 7]])

    def test_resize_shortest_edge(self):
        transform = T.ResizeShortestEdge(2).get_transform(np.zeros((4, 8, 3), dtype=np.uint8))
        assert transform.apply_image(np.full((4, 8, 3), 9, dtype=np.uint8)).tolist() == (
            np.full((2, 4, 3), 9).tolist()
        )


class TestNumPy:
    def test_semantic_evaluation(self, tmp_path, dataset_name):
        truth = np.zeros((4, 4), dtype=np.uint8)
        truth[:, 2:] = 1
        Image.fromarray(truth).save(tmp_path / "truth.png")
        sample = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "truth.png")}
        DatasetCatalog.register(dataset_name, lambda: [sample])
        MetadataCatalog.get(dataset_name).set(stuff_classes=["left", "right"], ignore_label=255)
        scores = torch.zeros(2, 4, 4)
        scores[0, :, :3] = 1.0  # one column of "right" is taken for "left"
        scores[1, :, 3:] = 1.0
        evaluator = SemSegEvaluator(dataset_name, distributed=False)
        evaluator.reset()
        evaluator.process([sample], [{"sem_seg": scores}])
        # IoU left 8 / 12, right 4 / 8
        assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100 * (8 / 12 + 4 / 8) / 2)

    def test_polygons_become_bitmasks(self):
        square = np.array([1.0, 1, 3, 1, 3, 3, 1, 3])
        masks = PolygonMasks([[square], []])
        assert masks.nonempty().tolist() == [True, False]
        (cropped,) = masks[:1].crop_and_resize(torch.tensor([[0.0, 0, 4, 4]]), 4)
        assert cropped.int().tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]

    def test_class_histogram(self, caplog):
        samples = [{"annotations": [{"category_id": 1}, {"category_id": 1}]}]
        with caplog.at_level("INFO", logger="detectron2"):
            print_instances_class_histogram(samples, ["circle", "square"])

    def test_panoptic_picture(self, dataset_name):
        metadata = MetadataCatalog.get(dataset_name).set(
            stuff_classes=["grass"], stuff_colors=[(0, 255, 0)], thing_classes=["circle"]
        )
        visualizer = Visualizer(np.zeros((32, 32, 3), dtype=np.uint8), metadata)
        segments = torch.ones(32, 32, dtype=torch.int32)
        info = [{"id": 1, "isthing": False, "category_id": 0, "area": 1024}]
        picture = visualizer.draw_panoptic_seg_predictions(segments, info, area_threshold=0)
        # The whole picture is tinted with the colour of grass.
        assert picture.get_image()[2, 2].argmax() == 1


def test_lazy_config_is_printed_without_black():
    config = OmegaConf.create({"a": 1, "b": {"c": "text"}})
    assert LazyConfig.to_py(config).replace(" ", "").splitlines() == ["cfg.a=1", "cfg.b.c='text'"]


def test_operators_that_need_compilation_say_so():
    from detectron2.layers import DeformConv
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    if detectron2.__dict__.get("_C") is not None:
        pytest.fail("this environment has a compiled Detectron2, which the set-up never installs")
    if IS_MAIN_BRANCH:
        with pytest.raises(ImportError, match="detectron2 is not compiled"):
            DeformConv(1, 1, 3)
        return
    with pytest.raises(ImportError, match="is a compiled operator"):
        pairwise_iou_rotated(torch.zeros(1, 5), torch.zeros(1, 5))


def test_export_without_caffe2():
    import detectron2.export

    assert detectron2.export.TracingAdapter is not None
    if IS_MAIN_BRANCH:
        assert not hasattr(detectron2.export, "Caffe2Tracer")
        return
    with pytest.raises(ImportError, match="Caffe2Tracer needs Caffe2"):
        detectron2.export.Caffe2Tracer  # noqa: B018

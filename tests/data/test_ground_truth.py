import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools.coco import COCO

from eomt_d2.data.ground_truth import (
    GroundTruth,
    ground_truth_kind,
    has_segments,
    instance_ground_truth,
    panoptic_ground_truth,
    run_starts,
    semantic_ground_truth,
)
from eomt_d2.errors import UserError


def all_masks(truth):
    return truth.masks(range(len(truth.classes)), *truth.size)


def save_ids(path, ids):
    ids = np.asarray(ids)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype("u1")).save(
        path
    )
    return str(path)


def save_labels(path, labels):
    Image.fromarray(np.asarray(labels)).save(path)
    return str(path)


def rectangle(left, top, right, bottom):
    return [float(v) for v in (left, top, right, top, right, bottom, left, bottom)]


def box_mask(height, width, left, top, right, bottom):
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


class TestMaps:
    """Four segments in two layers; value 5 (a crowd) and segment 1 are in none of the masks."""

    truth = GroundTruth(
        np.array([7, 8, 9, 6]),
        (
            np.array([[0, 1, 1], [5, 4, 1]], np.uint8),
            np.array([[3, 3, 0], [0, 5, 0]], np.uint8),
        ),
    )

    def test_segments_that_are_there(self):
        assert self.truth.nonempty().tolist() == [0, 2, 3]

    def test_masks(self):
        masks = self.truth.masks([3, 1, 0, 2], 3, 4)
        assert masks.dtype == bool and masks.shape == (4, 3, 4)
        assert [np.argwhere(mask).tolist() for mask in masks] == [
            [[1, 1]],
            [],
            [[0, 1], [0, 2], [1, 2]],
            [[0, 0], [0, 1]],
        ]
        assert self.truth.masks([], 3, 4).shape == (0, 3, 4)

    def test_label_map(self):
        truth = self.truth._replace(layers=self.truth.layers[:1])
        assert truth.label_map(255).tolist() == [[255, 7, 7], [255, 6, 7]]

    @pytest.mark.parametrize("num_segments", [3, 300])
    def test_masks_equal_a_comparison_per_segment(self, num_segments):
        rng = np.random.default_rng(num_segments)
        dtype = np.min_scalar_type(num_segments + 1)
        shared = rng.permutation(num_segments)[: num_segments // 2] + 1
        base = rng.integers(0, num_segments + 2, (20, 30)).astype(dtype)
        layers = (
            np.where(np.isin(base, shared), base, 0),
            np.where(np.isin(base, shared), 0, base),
        )
        truth = GroundTruth(np.arange(num_segments), layers)
        expected = base[None] == np.arange(1, num_segments + 1)[:, None, None]
        masks = truth.masks(range(num_segments), 25, 30)
        np.testing.assert_array_equal(masks[:, :20], expected)
        assert not masks[:, 20:].any()
        np.testing.assert_array_equal(truth.nonempty(), np.flatnonzero(expected.any((1, 2))))

    def test_runs_go_over_the_ends_of_rows(self):
        assert run_starts(np.array([[4, 4, 7], [7, 4, 4]])).tolist() == [0, 2, 4]
        assert run_starts(np.array([[3]])).tolist() == [0]


class TestKind:
    panoptic = {"pan_seg_file_name": "p.png", "segments_info": [], "sem_seg_file_name": "s.png"}
    separated = {"annotations": [], "sem_seg_file_name": "s.png"}

    def test_auto_takes_the_richest(self):
        assert ground_truth_kind(self.panoptic, "auto") == "panoptic"
        assert ground_truth_kind(self.separated, "auto") == "instance"
        assert ground_truth_kind({"sem_seg_file_name": "s.png"}, "auto") == "semantic"

    def test_request_overrides(self):
        assert ground_truth_kind(self.panoptic, "semantic") == "semantic"

    def test_faults_are_named(self):
        with pytest.raises(UserError, match='DATASET_MAPPER_NAME is "coco_panoptic_lsj"'):
            ground_truth_kind(self.panoptic, "coco_panoptic_lsj")
        with pytest.raises(UserError, match="a.jpg has no instance ground truth.*annotations"):
            ground_truth_kind({"file_name": "a.jpg", **self.panoptic}, "instance")
        with pytest.raises(UserError, match="a.jpg has no ground truth"):
            ground_truth_kind({"file_name": "a.jpg"}, "auto")
        with pytest.raises(UserError, match="separated panoptic form"):
            ground_truth_kind({"file_name": "a.jpg", **self.separated}, "panoptic")


def test_has_segments_counts_no_crowd():
    thing, crowd = {"iscrowd": 0}, {"iscrowd": 1}
    assert has_segments({"segments_info": [crowd, thing]}, "panoptic")
    assert has_segments({"segments_info": [{}]}, "panoptic")
    assert not has_segments({"segments_info": [crowd]}, "panoptic")
    assert not has_segments({"segments_info": []}, "panoptic")
    assert has_segments({"annotations": [thing]}, "instance")
    assert not has_segments({"annotations": [crowd, crowd]}, "instance")
    assert has_segments({"sem_seg_file_name": "s.png"}, "semantic")


class TestPanoptic:
    def test_real_images(self, test_data):
        folder = test_data / "coco"
        annotations = json.loads((folder / "annotations/panoptic_val2017_mini.json").read_text())[
            "annotations"
        ]
        count = 0
        for annotation in annotations:
            png = str(folder / "panoptic_val2017_mini" / annotation["file_name"])
            truth = panoptic_ground_truth({**annotation, "pan_seg_file_name": png})
            segments = [s for s in annotation["segments_info"] if not s["iscrowd"]]
            assert truth.classes.tolist() == [s["category_id"] for s in segments]
            ids = rgb2id(np.asarray(Image.open(png)))
            for mask, segment in zip(all_masks(truth), segments, strict=True):
                np.testing.assert_array_equal(mask, ids == segment["id"])
                assert mask.sum() == segment["area"]
            assert len(truth.layers) == 1 and truth.layers[0].dtype == np.uint8
            count += len(segments)
        assert count == 157 - 3  # the data's README: 157 segments, 3 crowds

    def test_crowd_and_void_are_in_no_segment(self, tmp_path):
        png = save_ids(tmp_path / "p.png", [[0, 5, 70000], [70000, 9, 9]])
        truth = panoptic_ground_truth(
            {
                "pan_seg_file_name": png,
                "segments_info": [
                    {"id": 70000, "category_id": 3, "iscrowd": 0},
                    {"id": 9, "category_id": 1, "iscrowd": 1},
                    {"id": 5, "category_id": 7},
                    {"id": 11, "category_id": 2, "iscrowd": 0},  # listed, but not in the PNG
                ],
            }
        )
        assert truth.classes.tolist() == [3, 7, 2]
        assert all_masks(truth).astype(int).tolist() == [
            [[0, 0, 1], [1, 0, 0]],
            [[0, 1, 0], [0, 0, 0]],
            [[0, 0, 0], [0, 0, 0]],
        ]
        assert truth.nonempty().tolist() == [0, 1]

    def test_unlisted_id_is_named(self, tmp_path):
        png = save_ids(tmp_path / "p.png", [[0, 5, 66051]])
        with pytest.raises(UserError, match="p.png has a segment with id 66051"):
            panoptic_ground_truth(
                {"pan_seg_file_name": png, "segments_info": [{"id": 5, "category_id": 0}]}
            )

    def test_more_segments_than_a_byte_counts(self, tmp_path):
        ids = np.arange(1, 301).reshape(10, 30)
        segments = [{"id": int(i), "category_id": int(i) % 7} for i in ids.ravel()]
        truth = panoptic_ground_truth(
            {"pan_seg_file_name": save_ids(tmp_path / "p.png", ids), "segments_info": segments}
        )
        assert truth.nonempty().tolist() == list(range(300))
        assert (all_masks(truth).sum((1, 2)) == 1).all()
        assert np.argwhere(truth.masks([299], 10, 30)[0]).tolist() == [[9, 29]]


class TestSemantic:
    def test_one_mask_per_class_present(self, tmp_path):
        png = save_labels(tmp_path / "s.png", np.array([[2, 255, 0], [2, 2, 149]], np.uint8))
        truth = semantic_ground_truth({"sem_seg_file_name": png}, ignore_value=255)
        assert truth.classes.tolist() == [0, 2, 149]
        assert all_masks(truth).astype(int).tolist() == [
            [[0, 0, 1], [0, 0, 0]],
            [[1, 0, 0], [1, 1, 0]],
            [[0, 0, 0], [0, 0, 1]],
        ]

    def test_ignore_value_can_be_another_one(self, tmp_path):
        png = save_labels(tmp_path / "s.png", np.array([[0, 1]], np.uint8))
        truth = semantic_ground_truth({"sem_seg_file_name": png}, ignore_value=0)
        assert truth.classes.tolist() == [1]

    def test_only_ignored_has_no_segment(self, tmp_path):
        png = save_labels(tmp_path / "s.png", np.full((3, 2), 255, np.uint8))
        truth = semantic_ground_truth({"sem_seg_file_name": png}, ignore_value=255, num_classes=5)
        assert truth.classes.shape == (0,) and truth.size == (3, 2)
        assert truth.nonempty().shape == (0,)

    def test_16_bit_labels(self, tmp_path):
        png = save_labels(tmp_path / "s.tif", np.array([[846, 65535, 3]], np.uint16))
        truth = semantic_ground_truth({"sem_seg_file_name": png}, ignore_value=65535)
        assert truth.classes.tolist() == [3, 846]

    def test_label_beyond_the_classes_is_named(self, tmp_path):
        png = save_labels(tmp_path / "s.png", np.array([[0, 150]], np.uint8))
        with pytest.raises(UserError, match="s.png has the label 150, but .* 150 classes"):
            semantic_ground_truth({"sem_seg_file_name": png}, ignore_value=255, num_classes=150)

    def test_real_image(self, test_data):
        png = test_data / "ade20k/annotations_detectron2/validation/ADE_val_00000002.png"
        truth = semantic_ground_truth(
            {"sem_seg_file_name": str(png)}, ignore_value=255, num_classes=150
        )
        labels = np.asarray(Image.open(png))
        assert truth.classes.tolist() == sorted(set(labels.ravel().tolist()) - {255})
        for mask, label in zip(all_masks(truth), truth.classes, strict=True):
            np.testing.assert_array_equal(mask, labels == label)


class TestInstance:
    def test_real_images_equal_pycocotools(self, test_data):
        coco = COCO(str(test_data / "coco/annotations/instances_val2017_mini.json"))
        polygons = rles = 0
        for image in coco.loadImgs(coco.getImgIds()):
            annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
            truth = instance_ground_truth(
                {"file_name": image["file_name"], "annotations": annotations},
                image["height"],
                image["width"],
            )
            kept = [a for a in annotations if not a["iscrowd"]]
            assert truth.classes.tolist() == [a["category_id"] for a in kept]
            for mask, annotation in zip(all_masks(truth), kept, strict=True):
                np.testing.assert_array_equal(mask, coco.annToMask(annotation))
                polygons += isinstance(annotation["segmentation"], list)
                rles += isinstance(annotation["segmentation"], dict)
        assert polygons > 20 and rles > 70

    def test_overlapping_instances_keep_their_whole_masks(self):
        boxes = [(0, 0, 4, 4), (2, 2, 6, 6), (5, 0, 8, 2), (3, 3, 5, 5)]
        annotations = [
            {"segmentation": [rectangle(*box)], "category_id": i} for i, box in enumerate(boxes)
        ]
        truth = instance_ground_truth({"file_name": "a.jpg", "annotations": annotations}, 8, 9)
        for mask, box in zip(all_masks(truth), boxes, strict=True):
            np.testing.assert_array_equal(mask, box_mask(8, 9, *box))
        # The first two overlap; the third fits beside the first; the fourth meets both layers.
        assert [sorted(set(layer.ravel().tolist())) for layer in truth.layers] == [
            [0, 1, 3],
            [0, 2],
            [0, 4],
        ]

    def test_polygons_of_one_instance_are_united(self):
        parts = [rectangle(0, 0, 2, 2), rectangle(1, 1, 3, 3), rectangle(5, 0, 6, 1)]
        annotations = [{"segmentation": parts, "category_id": 0}]
        truth = instance_ground_truth({"file_name": "a.jpg", "annotations": annotations}, 4, 7)
        assert len(truth.layers) == 1
        assert all_masks(truth)[0].astype(int).tolist() == [
            [1, 1, 0, 0, 0, 1, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [0, 1, 1, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ]

    def test_every_form_of_rle(self):
        # Column-major runs: 2 off, 3 on, 1 off in a 3x2 image.
        compressed = mask_util.frPyObjects({"size": [3, 2], "counts": [2, 3, 1]}, 3, 2)
        assert isinstance(compressed["counts"], bytes)
        forms = [
            {"size": [3, 2], "counts": [2, 3, 1]},
            compressed,
            {"size": [3, 2], "counts": compressed["counts"].decode()},
        ]
        for form in forms:
            annotations = [{"segmentation": form, "category_id": 4, "iscrowd": 0}]
            truth = instance_ground_truth({"file_name": "a.jpg", "annotations": annotations}, 3, 2)
            assert all_masks(truth)[0].astype(int).tolist() == [[0, 1], [0, 1], [1, 0]]

    def test_crowds_and_instances_without_pixels(self):
        annotations = [
            {"segmentation": [rectangle(0, 0, 2, 2)], "category_id": 0, "iscrowd": 1},
            {"segmentation": [[0.0] * 6], "category_id": 1, "iscrowd": 0},
            {"segmentation": [rectangle(1, 1, 3, 3)], "category_id": 2, "iscrowd": 0},
        ]
        truth = instance_ground_truth({"file_name": "a.jpg", "annotations": annotations}, 4, 4)
        assert truth.classes.tolist() == [1, 2]
        assert truth.nonempty().tolist() == [1]
        assert truth.masks([1], 4, 4).sum() == 4

    def test_no_annotations(self):
        truth = instance_ground_truth({"file_name": "a.jpg", "annotations": []}, 4, 5)
        assert truth.size == (4, 5) and truth.nonempty().shape == (0,)
        assert truth.masks([], 6, 6).shape == (0, 6, 6)

    @pytest.mark.parametrize(
        "segmentation", [None, [], [[0.0, 0.0, 4.0, 4.0]], [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 1.0]]]
    )
    def test_unusable_segmentation_is_named(self, segmentation):
        # pycocotools would silently draw four numbers as a box and cut an odd list.
        annotations = [{"segmentation": segmentation, "category_id": 0}]
        with pytest.raises(UserError, match="annotation of a.jpg has no usable segmentation"):
            instance_ground_truth({"file_name": "a.jpg", "annotations": annotations}, 8, 8)

    def test_rle_of_another_size_is_named(self):
        annotations = [{"segmentation": {"size": [3, 2], "counts": [6]}, "category_id": 0}]
        with pytest.raises(UserError, match="a.jpg is for an image of 2x3 .* has 5x4"):
            instance_ground_truth({"file_name": "a.jpg", "annotations": annotations}, 4, 5)


def test_masks_extend_to_the_canvas(tmp_path):
    png = save_labels(tmp_path / "s.png", np.array([[1, 0]], np.uint8))
    truth = semantic_ground_truth({"sem_seg_file_name": png}, ignore_value=255)
    assert truth.masks([1, 0], 2, 3).astype(int).tolist() == [
        [[1, 0, 0], [0, 0, 0]],
        [[0, 1, 0], [0, 0, 0]],
    ]

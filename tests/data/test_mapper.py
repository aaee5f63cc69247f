import copy
import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools.coco import COCO

from eomt_d2 import add_eomt_config
from eomt_d2.data import MaskClassificationMapper
from eomt_d2.data import mapper as mapper_module
from eomt_d2.data.color_jitter import apply_color_jitter
from eomt_d2.data.image_reading import read_image
from eomt_d2.errors import UserError


@META_ARCH_REGISTRY.register()
class RecordsInputs(torch.nn.Module):
    """A foreign meta-architecture; it gives back what it was given."""

    def __init__(self, cfg):
        super().__init__()

    def forward(self, batched_inputs):
        return batched_inputs


@META_ARCH_REGISTRY.register()
class RequiresBoxes(RecordsInputs):
    required_targets = frozenset({"boxes"})


@META_ARCH_REGISTRY.register()
class RequiresNothing(RecordsInputs):
    required_targets = frozenset()


def small_config(architecture="RequiresNothing"):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = ()
    cfg.DATASETS.TEST = ()
    cfg.INPUT.IMAGE_SIZE = 160
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 160
    return cfg


def train_mapper(**options):
    return MaskClassificationMapper(is_train=True, **{"image_size": 64, **options})


@pytest.fixture
def recorded(monkeypatch):
    """What the mapper drew: {"geometry": [...], "jitter": [...]}, in the order of drawing."""
    draws = {"geometry": [], "jitter": []}

    def record(name, function):
        def recording(*args, **options):
            draws[name].append(function(*args, **options))
            return draws[name][-1]

        return recording

    for name, attribute in (("geometry", "draw_geometry"), ("jitter", "draw_color_jitter")):
        monkeypatch.setattr(
            mapper_module, attribute, record(name, getattr(mapper_module, attribute))
        )
    return draws


@pytest.fixture
def entry(tmp_path):
    """Make an image of random colours with panoptic ground truth given as an array of ids."""

    def make(ids, categories, crowds=()):
        ids = np.asarray(ids, np.uint8)
        pixels = np.random.randint(1, 256, (*ids.shape, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1)).save(tmp_path / "truth.png")
        return {
            "file_name": str(tmp_path / "image.png"),
            "image_id": 7,
            "pan_seg_file_name": str(tmp_path / "truth.png"),
            "segments_info": [
                {"id": id, "category_id": category, "iscrowd": int(id in crowds)}
                for id, category in categories.items()
            ],
        }

    return make


def panoptic_entries(folder):
    data = json.loads((folder / "annotations/panoptic_val2017_mini.json").read_text())
    for annotation in data["annotations"]:
        name = annotation["file_name"]
        yield {
            "file_name": str(folder / "val2017" / name.replace(".png", ".jpg")),
            "image_id": annotation["image_id"],
            "pan_seg_file_name": str(folder / "panoptic_val2017_mini" / name),
            "segments_info": annotation["segments_info"],
        }


def instance_entries(folder):
    coco = COCO(str(folder / "annotations/instances_val2017_mini.json"))
    for image in coco.loadImgs(coco.getImgIds()):
        yield (
            coco,
            {
                "file_name": str(folder / "val2017" / image["file_name"]),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "annotations": coco.loadAnns(coco.getAnnIds(image["id"])),
            },
        )


def each_mask_by_itself(mask, geometry):
    """Flip, nearest resize with the floor rule, pad and crop one full-size mask."""
    if geometry.flip:
        mask = mask[:, ::-1]
    rows = np.floor(np.arange(geometry.height) * (mask.shape[0] / geometry.height) + 1e-9)
    columns = np.floor(np.arange(geometry.width) * (mask.shape[1] / geometry.width) + 1e-9)
    mask = mask[rows.astype(int)][:, columns.astype(int)]
    size, top, left = geometry.crop_size, geometry.top, geometry.left
    mask = np.pad(mask, [(0, max(size - side, 0)) for side in mask.shape])
    return mask[top : top + size, left : left + size]


def check_against_single_masks(sample, classes, masks, geometry):
    expected = [
        (label, cropped)
        for label, cropped in zip(
            classes, (each_mask_by_itself(mask, geometry) for mask in masks), strict=True
        )
        if cropped.any()
    ]
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [label for label, _ in expected]
    assert instances.gt_classes.dtype == torch.int64
    masks = instances.gt_masks.tensor
    assert masks.dtype == torch.bool and masks.shape[1:] == instances.image_size
    np.testing.assert_array_equal(masks.numpy(), np.stack([cropped for _, cropped in expected]))
    return len(classes) - len(expected)


class TestTraining:
    @pytest.mark.parametrize("size", [640, 97])
    def test_panoptic_equals_transforming_each_mask(self, test_data, recorded, size):
        mapper, dropped = train_mapper(image_size=size), 0
        for entry in panoptic_entries(test_data / "coco"):
            sample = mapper(entry)
            ids = rgb2id(np.asarray(Image.open(entry["pan_seg_file_name"])))
            segments = [s for s in entry["segments_info"] if not s["iscrowd"]]
            dropped += check_against_single_masks(
                sample,
                [s["category_id"] for s in segments],
                [ids == s["id"] for s in segments],
                recorded["geometry"][-1],
            )
            assert sample["image"].shape == (3, size, size)
            assert sample["image"].dtype == torch.uint8
        assert {g.flip for g in recorded["geometry"]} == {True, False}
        assert dropped > 0

    @pytest.mark.parametrize("size", [640, 97])
    def test_instances_equal_transforming_each_mask(self, test_data, recorded, size):
        mapper = train_mapper(image_size=size)
        for coco, entry in instance_entries(test_data / "coco"):
            sample = mapper(entry)
            kept = [a for a in entry["annotations"] if not a["iscrowd"]]
            check_against_single_masks(
                sample,
                [a["category_id"] for a in kept],
                [coco.annToMask(a) for a in kept],
                recorded["geometry"][-1],
            )

    def test_semantic_equals_transforming_each_mask(self, test_data, recorded):
        labels_file = test_data / "ade20k/annotations_detectron2/validation/ADE_val_00000001.png"
        entry = {
            "file_name": str(test_data / "ade20k/images/validation/ADE_val_00000001.jpg"),
            "sem_seg_file_name": str(labels_file),
        }
        sample = train_mapper(image_size=512, min_scale=0.5)(entry)
        labels = np.asarray(Image.open(labels_file))
        classes = sorted(set(labels.ravel().tolist()) - {255})
        check_against_single_masks(
            sample, classes, [labels == c for c in classes], recorded["geometry"][-1]
        )

    def test_jitter_comes_first_and_padding_stays_black(self, entry, recorded):
        dataset_dict = entry(np.ones((30, 40)), {1: 0})
        mapper = train_mapper(color_jitter=True, min_scale=0.7, max_scale=0.7)
        for _ in range(20):
            image = mapper(dataset_dict)["image"].permute(1, 2, 0).numpy()
            geometry = recorded["geometry"][-1]
            expected = apply_color_jitter(
                read_image(dataset_dict["file_name"]), recorded["jitter"][-1]
            )
            if geometry.flip:
                expected = expected[:, ::-1]
            # 0.7 * 64 = 44.8 wide, 0.7 * 48 = 33.6 high.
            resized = Image.fromarray(np.ascontiguousarray(expected)).resize((44, 33), 2)
            np.testing.assert_array_equal(image[:33, :44], np.asarray(resized))
            assert not image[33:].any() and not image[:, 44:].any()
        assert len({len(operations) for operations in recorded["jitter"]}) > 1

    def test_jitter_only_on_demand(self, entry, recorded):
        train_mapper()(entry(np.ones((30, 40)), {1: 0}))
        assert not recorded["jitter"] and len(recorded["geometry"]) == 1

    def test_crowd_void_and_padding_are_in_no_mask(self, entry):
        ids = np.array([[0, 3], [2, 9]]).repeat(16, 0).repeat(16, 1)
        dataset_dict = entry(ids, {2: 5, 3: 1, 9: 6}, crowds={9})
        sample = train_mapper(min_scale=0.5, max_scale=0.5)(dataset_dict)
        instances = sample["instances"]
        assert instances.gt_classes.tolist() == [5, 1]
        union = instances.gt_masks.tensor.sum(0)
        # 32 x 32 pixels, two of the four quarters of 16 x 16 are segments.
        assert union.max() == 1 and union.sum() == 2 * 16 * 16
        assert not union[32:].any() and not union[:, 32:].any()

    def test_a_crop_that_is_no_square(self, entry, recorded):
        """24 x 48 of an image of 40 x 80 scaled by its short side to 24 to 48 rows."""
        ids = np.ones((40, 80))
        ids[:, 40:] = 2
        mapper = train_mapper(
            image_size=48, crop_height=24, scale_fit="short", min_scale=0.5, max_scale=1.0,
            required_targets=frozenset({"sem_seg"}),
        )  # fmt: skip
        sample = mapper(entry(ids, {1: 4, 2: 5}))
        (geometry,) = recorded["geometry"]
        assert 24 <= geometry.height <= 48 and geometry.width in range(48, 97)
        assert sample["image"].shape == (3, 24, 48)
        masks = sample["instances"].gt_masks.tensor
        assert masks.shape[1:] == sample["sem_seg"].shape == (24, 48)
        # The image fills the crop, and each pixel of it is in one segment.
        assert (masks.sum(0) == 1).all()
        assert set(sample["sem_seg"].unique().tolist()) <= {4, 5}

    def test_channel_order(self, entry):
        dataset_dict = entry(np.ones((8, 8)), {1: 0})
        images = {}
        for image_format in ("RGB", "BGR"):
            np.random.seed(3)
            images[image_format] = train_mapper(image_format=image_format, color_jitter=True)(
                dataset_dict
            )["image"]
        assert torch.equal(images["RGB"].flip(0), images["BGR"])
        assert not torch.equal(images["RGB"], images["BGR"])

    def test_numpy_seed_decides_everything(self, test_data):
        entry = next(panoptic_entries(test_data / "coco"))
        mapper = train_mapper(color_jitter=True)
        samples = []
        for seed in (5, 5, 6):
            np.random.seed(seed)
            samples.append(mapper(entry)["image"])
        assert torch.equal(samples[0], samples[1])
        assert not torch.equal(samples[0], samples[2])

    def test_entry_is_not_changed_and_passes_through(self, test_data):
        entry = next(panoptic_entries(test_data / "coco"))
        before = copy.deepcopy(entry)
        sample = train_mapper()(entry)
        assert entry == before
        assert set(sample) == {
            "file_name",
            "image_id",
            "pan_seg_file_name",
            "height",
            "width",
            "image",
            "instances",
        }
        assert (sample["height"], sample["width"]) == read_image(entry["file_name"]).shape[:2]


class TestEmptySamples:
    def corner(self):
        """A segment of one pixel, in the last column, of an image of 16 x 16."""
        ids = np.zeros((16, 16))
        ids[15, 15] = 1
        return ids

    def test_redrawn_until_something_is_visible(self, entry, recorded):
        dataset_dict = entry(self.corner(), {1: 4})
        mapper = train_mapper(image_size=16, min_scale=2.0, max_scale=2.0)
        for _ in range(20):
            instances = mapper(dataset_dict)["instances"]
            assert instances.gt_classes.tolist() == [4]
            assert instances.gt_masks.tensor.any()
        # 2 of 17 offsets per axis show the corner, so 72 draws are expected per sample.
        assert len(recorded["geometry"]) > 100

    def test_redrawing_ends_with_the_file_s_name(self, entry, recorded):
        # Shrunk from 16 to 3 pixels, rows 0, 5 and 10 are sampled: row 15 never is.
        mapper = train_mapper(image_size=32, min_scale=0.1, max_scale=0.1)
        with pytest.raises(UserError, match="No segment of .*image.png was visible in any of 1000"):
            mapper(entry(self.corner(), {1: 4}))
        assert len(recorded["geometry"]) == 1000

    def test_kept_as_a_negative(self, entry, recorded):
        mapper = train_mapper(image_size=32, min_scale=0.1, max_scale=0.1, empty_samples="keep")
        instances = mapper(entry(self.corner(), {1: 4}))["instances"]
        assert len(instances) == 0 and instances.gt_classes.shape == (0,)
        assert instances.gt_masks.tensor.shape == (0, 32, 32)
        assert len(recorded["geometry"]) == 1

    def test_emptied_segments_kept_as_targets(self, entry, recorded):
        """Mask2Former's own panoptic recipe: the corner's mask is empty, and padding is grey."""
        ids = self.corner()
        ids[0, 0] = 2
        options = dict(image_size=32, min_scale=0.1, max_scale=0.1)
        dataset_dict = entry(ids, {1: 4, 2: 5})
        sample = train_mapper(**options, emptied_segments="keep", pad_value=128)(dataset_dict)
        assert sample["instances"].gt_classes.tolist() == [4, 5]
        # Rows and columns 0, 5 and 10 are sampled: the corner's 15 never is.
        assert sample["instances"].gt_masks.tensor.sum((1, 2)).tolist() == [0, 1]
        # int(0.1 * 32) = 3 pixels are image, the other 29 padding.
        assert (sample["image"][:, 3:] == 128).all() and (sample["image"][:, :, 3:] == 128).all()
        dropped = train_mapper(**options)(dataset_dict)
        assert dropped["instances"].gt_classes.tolist() == [5]
        assert (dropped["image"][:, 3:] == 0).all()

    def test_ground_truth_without_a_pixel_is_skipped_once_told(self, tmp_path, caplog):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        Image.new("L", (8, 8), 255).save(tmp_path / "labels.png")
        dataset_dict = {
            "file_name": str(tmp_path / "a.png"),
            "sem_seg_file_name": str(tmp_path / "labels.png"),
        }
        mapper = train_mapper()
        assert mapper(dataset_dict) is None and mapper(dataset_dict) is None
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path}/a.png is skipped: no pixel of its semantic ground truth belongs to a "
            "segment"
        ]
        assert len(train_mapper(empty_samples="keep")(dataset_dict)["instances"]) == 0

    def test_unknown_choice(self):
        with pytest.raises(UserError, match='EMPTY_SAMPLES is "skip"; it has to be redraw or keep'):
            train_mapper(empty_samples="skip")
        with pytest.raises(UserError, match='EMPTIED_SEGMENTS is "x"; it has to be drop or keep'):
            train_mapper(emptied_segments="x")


class TestRequiredTargets:
    ids = np.array([[0, 3, 3], [2, 9, 3]]).repeat(4, 0).repeat(4, 1)

    def config(self, architecture):
        cfg = small_config(architecture)
        cfg.INPUT.IMAGE_SIZE = 12
        cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
        return cfg

    @pytest.mark.parametrize(
        "architecture, boxes, sem_seg",
        [
            ("RequiresNothing", False, False),
            ("RequiresBoxes", True, False),
            ("RecordsInputs", True, True),
        ],
    )
    def test_architecture_decides(self, entry, architecture, boxes, sem_seg):
        dataset_dict = entry(self.ids, {2: 5, 3: 1, 9: 6}, crowds={9})
        sample = MaskClassificationMapper(self.config(architecture), is_train=True)(dataset_dict)
        assert sample["instances"].has("gt_boxes") == boxes
        assert ("sem_seg" in sample) == sem_seg

    def test_values(self, entry):
        dataset_dict = entry(self.ids, {2: 5, 3: 1, 9: 6}, crowds={9})
        mapper = MaskClassificationMapper(self.config("RecordsInputs"), is_train=True)
        flips = set()
        for _ in range(12):
            sample = mapper(dataset_dict)
            flip = sample["sem_seg"][0, 0].item() == 1
            flips.add(flip)
            labels = sample["sem_seg"].flip(1) if flip else sample["sem_seg"]
            # Void, crowd (bottom middle) and padding (the last third) are ignored.
            assert labels[::4, ::4].tolist() == [[255, 1, 1], [5, 255, 1], [255, 255, 255]]
            assert labels.dtype == torch.int64
            assert sample["instances"].gt_boxes.tensor.tolist() == (
                [[8, 4, 12, 8], [0, 0, 8, 8]] if flip else [[0, 4, 4, 8], [4, 0, 12, 8]]
            )
        assert flips == {True, False}

    def test_semantic_labels(self, tmp_path):
        labels = np.array([[0, 255], [149, 149]], np.uint8).repeat(6, 0).repeat(6, 1)
        Image.new("RGB", (12, 12)).save(tmp_path / "a.png")
        Image.fromarray(labels).save(tmp_path / "labels.png")
        sample = MaskClassificationMapper(self.config("RecordsInputs"), is_train=True)(
            {
                "file_name": str(tmp_path / "a.png"),
                "sem_seg_file_name": str(tmp_path / "labels.png"),
            }
        )
        expected = torch.from_numpy(labels).long()
        assert torch.equal(sample["sem_seg"], expected) or torch.equal(
            sample["sem_seg"], expected.flip(1)
        )

    def test_instances_bring_a_label_map_only_from_a_file(self, tmp_path):
        mapper = MaskClassificationMapper(self.config("RecordsInputs"), is_train=True)
        Image.new("RGB", (12, 6)).save(tmp_path / "a.png")
        Image.new("L", (12, 6), 3).save(tmp_path / "labels.png")
        square = [0.0, 0.0, 6.0, 0.0, 6.0, 6.0, 0.0, 6.0]
        entry = {
            "file_name": str(tmp_path / "a.png"),
            "annotations": [{"segmentation": [square], "category_id": 2}],
        }
        assert "sem_seg" not in mapper(entry)
        sample = mapper({**entry, "sem_seg_file_name": str(tmp_path / "labels.png")})
        assert sample["instances"].gt_classes.tolist() == [2]
        assert (sample["sem_seg"][:6] == 3).all() and (sample["sem_seg"][6:] == 255).all()

    def test_masks_as_a_tensor(self, entry):
        samples = []
        for mask_format in ("bitmask", "polygon", "tensor"):
            cfg = self.config("RecordsInputs")
            cfg.INPUT.MASK_FORMAT = mask_format
            np.random.seed(0)
            sample = MaskClassificationMapper(cfg, is_train=True)(
                entry(self.ids, {2: 5, 3: 1, 9: 6})
            )
            samples.append(sample["instances"])
        bitmask, polygon, tensor = samples
        assert (type(bitmask.gt_masks), type(polygon.gt_masks)) == (BitMasks, BitMasks)
        assert tensor.gt_masks.dtype == torch.bool
        assert tensor.gt_masks.shape == (3, 12, 12)
        assert torch.equal(tensor.gt_masks, bitmask.gt_masks.tensor)
        assert torch.equal(tensor.gt_boxes.tensor, bitmask.gt_boxes.tensor)

    def test_unknown_target(self):
        with pytest.raises(UserError, match="requires the targets \\['keypoints'\\]"):
            train_mapper(required_targets=frozenset({"keypoints"}))


class TestConfig:
    def test_metadata_gives_ignore_value_and_classes(self):
        name = "test_mapper_metadata"
        MetadataCatalog.get(name).set(ignore_label=99, stuff_classes=["a", "b"])
        cfg = small_config()
        cfg.DATASETS.TRAIN = (name,)
        mapper = MaskClassificationMapper(cfg)
        MetadataCatalog.remove(name)
        assert mapper.is_train
        assert (mapper.ignore_value, mapper.num_semantic_classes) == (99, 2)

    def test_without_metadata(self):
        cfg = small_config()
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 254
        mapper = MaskClassificationMapper(cfg, is_train=True)
        assert (mapper.ignore_value, mapper.num_semantic_classes) == (254, None)

    def test_scales(self):
        for low, high in ((0.0, 2.0), (2.0, 1.0)):
            with pytest.raises(UserError, match="INPUT.MIN_SCALE .* INPUT.MAX_SCALE"):
                train_mapper(min_scale=low, max_scale=high)


class TestFaults:
    def test_image_and_ground_truth_of_different_sizes(self, entry):
        dataset_dict = entry(np.ones((30, 40)), {1: 0})
        Image.new("RGB", (40, 29)).save(dataset_dict["file_name"])
        with pytest.raises(UserError, match="image.png has 40x29 .*truth.png has 40x30"):
            train_mapper()(dataset_dict)

    @pytest.mark.parametrize("is_train", [True, False])
    def test_image_of_another_size_than_listed(self, entry, is_train):
        dataset_dict = {**entry(np.ones((30, 40)), {1: 0}), "height": 30, "width": 41}
        with pytest.raises(UserError, match="image.png has 40x30 pixels.* says 41x30"):
            MaskClassificationMapper(is_train=is_train)(dataset_dict)


class TestInference:
    @pytest.mark.parametrize("image_format", ["RGB", "BGR"])
    @pytest.mark.parametrize("max_size", [160, 4000])
    def test_equals_the_unmodified_default_predictor(self, test_data, image_format, max_size):
        cfg = small_config("RecordsInputs")
        cfg.INPUT.FORMAT = image_format
        cfg.INPUT.MAX_SIZE_TEST = max_size
        predictor = DefaultPredictor(cfg)
        mapper = MaskClassificationMapper(cfg, is_train=False)
        for name in ("rocket_640x427.jpg", "exif_orient6_1200x1800.jpg", "coco_gray_378x640.jpg"):
            path = str(test_data / "photos" / name)
            sample, expected = mapper({"file_name": path}), predictor(read_image(path, "BGR"))
            assert set(sample) == {"file_name", "image", "height", "width"}
            assert sample["image"].dtype == torch.uint8
            assert torch.equal(sample["image"].float(), expected["image"])
            for key in ("height", "width"):
                assert sample[key] == expected[key]

    def test_sizes_fit_the_square(self):
        # Rounded half up where the published rule rounds half to even.
        rng = np.random.default_rng(0)
        for height, width in rng.integers(30, 3000, (3000, 2)).tolist():
            sizes = ResizeShortestEdge.get_output_shape(height, width, 640, 640)
            assert max(sizes) == 640
            for size, side in zip(sizes, (height, width), strict=True):
                exact = 640 * side / max(height, width)
                assert size == round(exact) or abs(exact % 1 - 0.5) < 1e-9

    def test_annotations_are_left_out(self, entry):
        dataset_dict = entry(np.ones((30, 40)), {1: 0})
        sample = MaskClassificationMapper(is_train=False)({**dataset_dict, "annotations": []})
        assert "segments_info" not in sample and "annotations" not in sample
        assert "instances" not in sample and sample["image_id"] == 7
        assert sample["image"].shape == (3, 480, 640)

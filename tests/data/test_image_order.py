from collections import Counter
from itertools import islice

import pytest
from detectron2.config import get_cfg

from eomt_d2.config import add_eomt_config
from eomt_d2.data.image_order import ImageOrder, RepeatedOrder, SubsetOrder, build_image_order
from eomt_d2.errors import UserError

ORDERS = [ImageOrder(7), SubsetOrder(14, 0.5), RepeatedOrder([1.0, 2.5, 1.25, 3.0])]


def first(count, order, seed=3, position=0):
    return list(islice(order.indices(seed, position), count))


@pytest.mark.parametrize("order", ORDERS)
def test_entered_anywhere_it_goes_on_as_from_the_start(order):
    whole = first(60, order)
    for position in range(40):
        assert first(20, order, position=position) == whole[position : position + 20]


@pytest.mark.parametrize("order", ORDERS)
def test_seeds_and_passes_differ(order):
    passes = [order.pass_indices(seed, number).tolist() for seed in (3, 4) for number in (0, 1, 2)]
    assert len({tuple(one) for one in passes}) == len(passes)


def test_every_image_comes_once_per_pass():
    indices = first(21, ImageOrder(7))
    for start in (0, 7, 14):
        assert sorted(indices[start : start + 7]) == list(range(7))


def test_the_subset_is_the_same_in_every_pass():
    order = SubsetOrder(100, 0.05)
    passes = [set(order.pass_indices(3, number).tolist()) for number in range(4)]
    assert len(passes[0]) == 5 and all(one == passes[0] for one in passes)
    assert set(order.pass_indices(4, 0).tolist()) != passes[0]


def test_images_are_repeated_by_their_factors():
    order = RepeatedOrder([1.0, 2.5, 1.25, 3.0])
    counts = Counter(i for number in range(2000) for i in order.pass_indices(0, number).tolist())
    assert (counts[0], counts[3]) == (2000, 6000)
    # Standard deviations of the share 0.5 and 0.25 of 2000: 22 and 19.
    assert abs(counts[1] - 5000) < 110 and abs(counts[2] - 2500) < 100


def config(name, **loader):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.DATALOADER.SAMPLER_TRAIN = name
    for key, value in loader.items():
        cfg.DATALOADER[key] = value
    return cfg


def entries(key, *categories):
    return [{"file_name": "a.jpg", key: [{"category_id": c} for c in row]} for row in categories]


@pytest.mark.parametrize("key", ["annotations", "segments_info"])
def test_rare_categories_repeat(key):
    dataset = entries(key, [0], [0], [0, 0], [0, 1])
    order = build_image_order(config("RepeatFactorTrainingSampler", REPEAT_THRESHOLD=1.0), dataset)
    # Category 1 is in a quarter of the images: sqrt(1 / 0.25) = 2.
    assert Counter(order.pass_indices(0, 0).tolist()) == {0: 1, 1: 1, 2: 1, 3: 2}


def test_orders_by_name():
    dataset = entries("annotations", *[[0]] * 10)
    assert len(build_image_order(config("TrainingSampler"), dataset).pass_indices(0, 0)) == 10
    subset = config("RandomSubsetTrainingSampler", RANDOM_SUBSET_RATIO=0.3)
    assert len(build_image_order(subset, dataset).pass_indices(0, 0)) == 3


@pytest.mark.parametrize(
    "cfg, dataset, sentence",
    [
        (config("Sampler"), [{}], "DATALOADER.SAMPLER_TRAIN is 'Sampler'; it must be 'Training"),
        (
            config("RepeatFactorTrainingSampler"),
            [{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}],
            "the annotations of a.jpg do not list its segments",
        ),
        (
            config("RandomSubsetTrainingSampler", RANDOM_SUBSET_RATIO=0.01),
            [{}] * 10,
            "RANDOM_SUBSET_RATIO is 0.01, which leaves none of 10 images",
        ),
    ],
)
def test_mistakes_are_named(cfg, dataset, sentence):
    with pytest.raises(UserError, match=sentence):
        build_image_order(cfg, dataset)

import logging

import numpy as np
import pytest
from detectron2.config import get_cfg

from eomt_d2 import add_eomt_config
from eomt_d2.data.bad_samples import SkipsBadSamples, skip_bad_samples
from eomt_d2.errors import UserError


def mapper(entry, position=None):
    """Draws a number before it looks at the file, as an augmentation may."""
    number = np.random.rand()
    if entry["file_name"].startswith("bad"):
        raise UserError(f"{entry['file_name']} cannot be read; remove it.")
    return {"number": number, "position": position}


def entries(*names):
    return [{"file_name": name} for name in names]


def test_good_samples_pass_with_all_arguments():
    skips = SkipsBadSamples(mapper)
    assert skips({"file_name": "good"}, position=3)["position"] == 3
    assert skips.num_skipped == 0


def test_bad_ones_become_none_are_logged_once_and_counted(caplog):
    skips = SkipsBadSamples(mapper)
    with caplog.at_level(logging.WARNING):
        samples = [skips(entry) for entry in entries("bad1", "good", "bad1", "bad2")]
    assert [sample is None for sample in samples] == [True, False, True, True]
    assert skips.num_skipped == 3
    assert [record.message for record in caplog.records] == [
        "Bad sample skipped (bad images so far: 1, skipped 1 times): bad1 cannot be read; "
        "remove it.",
        "Bad sample skipped (bad images so far: 2, skipped 3 times): bad2 cannot be read; "
        "remove it.",
    ]


def test_a_hundred_in_a_row_are_an_error():
    skips = SkipsBadSamples(mapper)
    for i in range(99):
        assert skips({"file_name": f"bad{i}"}) is None
    assert skips({"file_name": "good"}) is not None
    for i in range(99):
        assert skips({"file_name": f"bad{i}"}) is None
    with pytest.raises(UserError, match="100 images in a row .*: bad99 cannot be read; remove it"):
        skips({"file_name": "bad99"})


def test_faults_of_the_program_are_not_skipped():
    def broken(entry):
        raise KeyError("image")

    with pytest.raises(KeyError):
        SkipsBadSamples(broken)({"file_name": "good"})


def test_random_numbers_are_the_mappers_own():
    """What a sample draws does not depend on how often others were skipped before."""
    skips = SkipsBadSamples(mapper)
    np.random.seed(3)
    alone = skips({"file_name": "good"})
    for _ in range(5):
        skips({"file_name": "bad"})
    np.random.seed(3)
    assert skips({"file_name": "good"}) == alone


@pytest.mark.parametrize("value, kind", [("raise", type(mapper)), ("skip", SkipsBadSamples)])
def test_config(value, kind):
    cfg = get_cfg()
    add_eomt_config(cfg)
    assert cfg.DATALOADER.ON_BAD_SAMPLE == "raise"
    cfg.DATALOADER.ON_BAD_SAMPLE = value
    assert type(skip_bad_samples(cfg, mapper)) is kind

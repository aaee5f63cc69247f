from detectron2.config import get_cfg

from eomt_d2.config import add_eomt_config
from eomt_d2.engine.scaling import scale_to_world_size


def scaled_config(num_workers, **annealing):
    cfg = get_cfg()
    add_eomt_config(cfg)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.MAX_ITER = 9000
    for key, value in annealing.items():
        cfg.MODEL.MASK_FORMER.MASK_ANNEALING[key] = value
    cfg.freeze()
    return scale_to_world_size(cfg, num_workers)


def test_worker_scaling_covers_warm_ups_and_windows():
    cfg = scaled_config(4, SCHEDULE="iterations", STARTS=[1500, 3000], ENDS=[3000, 4501])
    assert cfg.SOLVER.IMS_PER_BATCH == 8
    assert cfg.SOLVER.BASE_LR == 5e-5
    assert cfg.SOLVER.MAX_ITER == 18000
    assert (cfg.SOLVER.WARMUP_ITERS_HEAD, cfg.SOLVER.WARMUP_ITERS_BACKBONE) == (1000, 2000)
    annealing = cfg.MODEL.MASK_FORMER.MASK_ANNEALING
    assert (annealing.STARTS, annealing.ENDS) == ([3000, 6000], [6000, 9002])
    assert cfg.is_frozen()


def test_worker_scaling_leaves_fractions_alone():
    cfg = scaled_config(16, SCHEDULE="fractions", STARTS=[0.1], ENDS=[0.3])
    assert (cfg.SOLVER.WARMUP_ITERS_HEAD, cfg.SOLVER.WARMUP_ITERS_BACKBONE) == (250, 500)
    assert cfg.MODEL.MASK_FORMER.MASK_ANNEALING.STARTS == [0.1]


def test_no_worker_scaling_without_a_reference():
    cfg = get_cfg()
    add_eomt_config(cfg)
    assert scale_to_world_size(cfg, 4) is cfg

"""Which evaluators belong to a data set and a model."""

import logging
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from eomt_d2.errors import UserError
from eomt_d2.evaluation.cityscapes import (
    CityscapesInstanceEvaluator,
    CityscapesPanopticEvaluator,
    CityscapesSemanticEvaluator,
)
from eomt_d2.evaluation.instance import InstanceEvaluator
from eomt_d2.evaluation.panoptic import PanopticEvaluator
from eomt_d2.evaluation.semantic import SemanticSegmentationEvaluator

__all__ = ["build_evaluator", "evaluated_tasks"]

logger = logging.getLogger(__name__)

_COCO_PANOPTIC = {
    "panoptic": PanopticEvaluator,
    "instance": InstanceEvaluator,
    "semantic": SemanticSegmentationEvaluator,
}
# By evaluator_type: the tasks a data set has ground truth for. The first is its main task; the
# others need metadata (the evaluator's required_metadata) that not every such data set has.
_EVALUATORS: dict[str, dict[str, type]] = {
    "coco_panoptic_seg": _COCO_PANOPTIC,
    "ade20k_panoptic_seg": _COCO_PANOPTIC,
    "coco": {"instance": InstanceEvaluator},
    "ade20k_instance": {"instance": InstanceEvaluator},
    "sem_seg": {"semantic": SemanticSegmentationEvaluator},
    "cityscapes_sem_seg": {"semantic": CityscapesSemanticEvaluator},
    "cityscapes_instance": {"instance": CityscapesInstanceEvaluator},
    "cityscapes_panoptic_seg": {
        "panoptic": CityscapesPanopticEvaluator,
        "instance": CityscapesInstanceEvaluator,
        "semantic": CityscapesSemanticEvaluator,
    },
}
_FLAGS = {"panoptic": "PANOPTIC_ON", "instance": "INSTANCE_ON", "semantic": "SEMANTIC_ON"}


def evaluated_tasks(cfg: CfgNode, dataset_name: str) -> tuple[str, ...]:
    """Say which of "panoptic", "instance", "semantic" will be evaluated on a data set.

    These are the tasks the model is configured to give results for
    (``MODEL.MASK_FORMER.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON``) and the data set has ground truth
    for. With no flag set, as for Detectron2's own architectures, it is the data set's main task.

    Raises:
        UserError: the ``evaluator_type`` is unknown, or no task is left.
    """
    metadata = MetadataCatalog.get(dataset_name)
    evaluator_type = metadata.get("evaluator_type")
    if evaluator_type not in _EVALUATORS:
        raise UserError(
            f"The data set {dataset_name} has evaluator_type {evaluator_type!r}, for which there "
            f"is no evaluator: set it in MetadataCatalog to one of {', '.join(_EVALUATORS)}."
        )
    evaluators = _EVALUATORS[evaluator_type]
    main_task = next(iter(evaluators))
    switches = cfg.MODEL.MASK_FORMER.TEST
    wanted = [task for task, flag in _FLAGS.items() if switches[flag]]
    if not wanted:
        return (main_task,)

    tasks = []
    for task, evaluator in evaluators.items():
        if task not in wanted:
            continue
        if task == main_task or metadata.get(evaluator.required_metadata):
            tasks.append(task)
        else:
            logger.warning(
                "%s results on %s are not evaluated, because its metadata has no %s.",
                task.capitalize(),
                dataset_name,
                evaluator.required_metadata,
            )
    if not tasks:
        flags = " or ".join(f"MODEL.MASK_FORMER.TEST.{_FLAGS[task]}" for task in evaluators)
        raise UserError(
            f"Nothing can be evaluated on {dataset_name} (evaluator_type {evaluator_type!r}), "
            f"which has no ground truth for the tasks that are on: set {flags} to True."
        )
    return tuple(tasks)


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Build the standard evaluators of a data set, see :func:`evaluated_tasks`.

    Args:
        cfg: config with the keys of :func:`eomt_d2.config.add_eomt_config`.
        dataset_name: a registered data set.
        output_folder: predictions go into ``<output_folder>/<dataset_name>/``, so that several
            data sets may share the folder. None means ``<cfg.OUTPUT_DIR>/inference``.

    Returns:
        An evaluator whose ``evaluate()`` gives a dict with ``panoptic_seg``, ``segm``, ``bbox``
        and ``sem_seg``, each a dict of metrics in percent.

    Raises:
        UserError: see :func:`evaluated_tasks`; or a needed package or file is missing.
    """
    tasks = evaluated_tasks(cfg, dataset_name)
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    folder = os.path.join(output_folder, dataset_name)
    classes = _EVALUATORS[MetadataCatalog.get(dataset_name).evaluator_type]
    options = {InstanceEvaluator: {"coco_evaluator": cfg.TEST.COCO_EVALUATOR}}
    evaluators = [
        classes[task](dataset_name, folder, **options.get(classes[task], {})) for task in tasks
    ]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)

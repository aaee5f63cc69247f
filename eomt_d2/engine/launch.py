"""Starting the processes of a run: one, several by Detectron2, or those torchrun has started."""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable

import detectron2.engine
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from eomt_d2.errors import UserError

from .interruption import SIGNALS, SignalWatch

__all__ = ["launch"]


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process of the run.

    Under torchrun (RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE in the environment) this
    process joins the others, over NCCL where there is a GPU for each and over Gloo otherwise.
    Elsewhere Detectron2's launcher starts ``args.num_gpus`` processes per machine.

    Args:
        main: the work of one process.
        args: of :func:`detectron2.engine.default_argument_parser`.

    Raises:
        UserError: if ``args`` asks for more GPUs than this machine has, or what a process that
            was started here raised.
        SystemExit: with 128 + the signal, where processes that were started here ended after one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ:
        _run_under_torchrun(main, args)
        return
    num_gpus = torch.cuda.device_count()
    if args.num_gpus > max(num_gpus, 1):
        raise UserError(
            f"--num-gpus is {args.num_gpus}, but PyTorch finds {num_gpus} GPUs here; processes "
            f"without GPUs can be started with torchrun."
        )
    mistakes = multiprocessing.get_context("spawn").SimpleQueue()

    def start() -> None:
        detectron2.engine.launch(
            _run_and_report,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args, mistakes),
        )

    if args.num_gpus * args.num_machines == 1:
        start()
        return
    try:
        # This process has nothing to save itself.
        with SignalWatch(_pass_on).listening():
            start()
    except ProcessException as error:
        # Whichever process ended first, a mistake of the user explains the others' ends too.
        if not mistakes.empty():
            raise UserError(mistakes.get()) from None
        code = getattr(error, "exit_code", None)
        if isinstance(error, ProcessExitedException) and code in [128 + s for s in SIGNALS]:
            sys.exit(code)
        raise


def _pass_on(signum: int) -> None:
    for process in multiprocessing.active_children():
        if process.pid is not None:
            os.kill(process.pid, signum)


def _run_and_report(
    main: Callable[[argparse.Namespace], object],
    args: argparse.Namespace,
    mistakes: multiprocessing.SimpleQueue,
) -> None:
    """Of an exception, PyTorch hands only the traceback's text to the parent process."""
    try:
        main(args)
    except UserError as error:
        mistakes.put(str(error))
        raise


def _run_under_torchrun(
    main: Callable[[argparse.Namespace], object], args: argparse.Namespace
) -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    use_gpu = torch.cuda.device_count() >= local_size
    if use_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if use_gpu else "gloo")
    try:
        _create_local_group(local_size)
        comm.synchronize()
        main(args)
    finally:
        dist.destroy_process_group()


def _create_local_group(local_size: int) -> None:
    """Tell Detectron2 which ranks share this machine; its launcher would do so itself."""
    for first in range(0, dist.get_world_size(), local_size):
        ranks = list(range(first, first + local_size))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group

"""Several workers for one command: processes here, or jobs that submitit starts here or hands to Slurm.

Each takes runs from the results folder until none is left; what one leaves behind when it dies the others take over.
How a run ended is read from the disk, whoever did it. submitit is an extra and imported only where it is asked for.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vqa_bench.errors import UserError
from vqa_bench.matrix.fill import say
from vqa_bench.matrix.folder import is_filled
from vqa_bench.matrix.work import Work, work
from vqa_bench.plugins import load_plugins

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

JOBS = ".jobs"  # in the results folder: what submitit writes, the jobs' logs among it
SAY_SECONDS = 60.0
TIMEOUTS = 1000  # a job may run into its time limit as often as it must: it goes on from a checkpoint
WEEK = 7 * 24 * 60

Where = Literal["here", "local", "slurm"]


@dataclass(frozen=True)
class Cluster:
    """What a job gets. minutes: until it is stopped, and goes on as a new one; tasks: processes a node that train
    together, by default one for each GPU.
    """

    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    gpus: int | None = None
    nodes: int = 1
    tasks: int | None = None
    minutes: int | None = None


class Worker:
    """What a process or a job runs. It can be pickled, which is what submitit does when a job is requeued.

    Attributes:
        gpus: what it shall see of the machine's GPUs, as CUDA_VISIBLE_DEVICES has it; None for what is there.
    """

    def __init__(self, todo: Work, gpus: str | None = None) -> None:
        self.todo, self.gpus = todo, gpus

    def __call__(self) -> None:
        """Work until nothing is left; faults of runs are on the disk, so that it returns nothing."""
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        load_plugins(self.todo.invocation.plugins)
        work(self.todo)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts when the job is preempted or its time is up: the same, as the state is on the disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class JobWorker(Worker):
    """A worker of submitit's, one of several tasks of a job perhaps."""

    def __call__(self) -> None:
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        if JobEnvironment().num_tasks > 1:
            # Every task sees all GPUs of its node and takes the one of its rank, as accelerate does.
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        super().__call__()


def work_here(todo: Work, jobs: int) -> None:
    """Processes of this machine; with several GPUs they take turns in having one each."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=_process, args=(Worker(todo, gpus),), name=f"worker {number + 1}")
        for number, gpus in enumerate(_deal_gpus(jobs))
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join()
    for process in processes:
        if process.exitcode:
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
            say(f"note: {process.name} ended early ({how}); the others went on with what it left")


def work_in_jobs(todo: Work, jobs: int, where: Where, out: Path, cluster: Cluster) -> None:
    """Jobs of submitit; waits for all of them. Ctrl-C cancels them; if this process dies they go on by themselves."""
    submitit = _submitit()
    if where == "slurm" and shutil.which("sbatch") is None:
        raise UserError("expected Slurm for --executor slurm, got no sbatch here; use a login node of the cluster")
    executor = submitit.AutoExecutor(out.resolve() / JOBS, cluster=where, **{f"{where}_max_num_timeout": TIMEOUTS})
    executor.update_parameters(name=f"vqa-bench {out.name}", **_parameters(where, cluster))
    tasks = _tasks(cluster)
    dealt = _deal_gpus(jobs) if where == "local" and tasks == 1 else [None] * jobs
    with submitit.helpers.clean_env():
        submitted: list[Job[None]] = [executor.submit(JobWorker(todo, gpus)) for gpus in dealt]
    say(f"{jobs} jobs submitted: {', '.join(job.job_id for job in submitted)}; logs in {executor.folder}")
    try:
        _wait(submitted, todo)
    except BaseException:
        for job in submitted:
            job.cancel(check=False)
        raise
    for job in submitted:
        if job.exception() is not None:
            say(f"note: job {job.job_id} ended early ({job.state}); its log is {job.paths.stderr}")


def _parameters(where: Where, cluster: Cluster) -> dict[str, Any]:
    """What submitit is to ask for, in its words; None is not asked for."""
    default = WEEK if where == "local" else 24 * 60
    shared = {
        "timeout_min": cluster.minutes or default,
        "nodes": cluster.nodes,
        "tasks_per_node": _tasks(cluster),
        "gpus_per_node": cluster.gpus,
    }
    own = {"partition": cluster.partition, "account": cluster.account, "constraint": cluster.constraint}
    return shared | ({f"slurm_{name}": value for name, value in own.items()} if where == "slurm" else {})


def _tasks(cluster: Cluster) -> int:
    return max(1, cluster.gpus or 0) if cluster.tasks is None else cluster.tasks


def _wait(jobs: list[Job[None]], todo: Work) -> None:
    """Until all jobs are over; says how far they are."""
    said, said_at = -1, 0.0
    while not all(job.done() for job in jobs):
        filled = sum(is_filled(run) for run in todo.runs)
        now = time.monotonic()
        if filled != said or now - said_at >= SAY_SECONDS:
            running = sum(not job.done() for job in jobs)
            say(f"{filled} of {len(todo.runs)} runs finished, {running} of {len(jobs)} jobs at work or waiting")
            said, said_at = filled, now
        time.sleep(1.0)


def _submitit() -> Any:
    try:
        import submitit
        import submitit.helpers
    except ImportError as error:
        raise UserError(
            "expected submitit for --executor local or slurm, got no such package; pip install 'vqa-bench[slurm]'"
        ) from error
    return submitit


def gpus() -> int:
    """How many GPUs this process sees."""
    import torch

    return torch.cuda.device_count()


def _deal_gpus(workers: int) -> list[str | None]:
    """Which GPU each worker has, in turns; None where there is at most one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(gpus())] if visible is None else visible.split(",")
    return [names[number % len(names)] if len(names) > 1 else None for number in range(workers)]


def _process(worker: Callable[[], None]) -> None:
    """The main function of a process of this machine; it ends with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        worker()
    except (UserError, OSError) as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""Several processes, one for each GPU: `torchrun --nproc-per-node 4 -m minibnn train --images photos/rex …`.

Follows: PyTorch's DistributedDataParallel (Li et al. 2020). Every process holds the whole model and trains it on
pictures, times, noise and random weights of its own. The gradients are added up while backward still runs, so that all
processes take the same step. Forwards are numbered over all processes, and each is seeded by its number: N processes
with `--accumulate 1` do what one process does with `--accumulate N`, on a CPU bit for bit.

    process r of W, forward a of A in step s  →  forward number (s·A + a)·W + r

torchrun tells every process its place by environment variables. Without them, the functions here do next to nothing.

But: the model and the optimiser are not divided among the GPUs.
"""

import atexit
import contextlib
import functools
import logging
import os
import signal
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .errors import UserError

PATIENCE = timedelta(days=1)  # others wait while process 0 draws or saves; torchrun sees when a process dies


def rank():
    """The number of this process, 0..W−1; alone 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """W, how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number(step, forward, accumulate):
    """The number of a forward among those of all processes and steps."""
    return (step * accumulate + forward) * world() + rank()


# --- the group --------------------------------------------------------------------------------------------------------


def one_of_several(command):
    """Decorate a function of options (with `device`) that torchrun may start in several processes at once.

    They form a group. What goes to stdout and to the log, and the mistake that ends it, is said once.
    """

    @functools.wraps(command)
    def joined(options, *arguments):
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return command(options, *arguments)
        join(options.device)
        with contextlib.ExitStack() as silence:
            if rank():
                nothing = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
                silence.enter_context(contextlib.redirect_stdout(nothing))
                logging.getLogger("minibnn").setLevel(logging.ERROR)
            try:
                take_gpu(options.device)
                return command(options, *arguments)
            except (Exception, KeyboardInterrupt) as error:
                if lost := is_lost(error):
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's to those that are left
                if dist.distributed_c10d._get_default_store().add("minibnn/said", 1) > 1:
                    time.sleep(2)  # another process is saying it, and torchrun would kill that if this one ended first
                    raise SystemExit(2) from None
                if lost:
                    raise UserError("another of the processes has ended without a word, perhaps killed for lack of "
                                    "memory: --resume goes on from the last checkpoint") from None
                raise

    return joined


def is_lost(error):
    """Whether an exception, or one that it interrupted, says that another process of the group is gone."""
    while error and not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
        error = error.__context__
    return error is not None


def join(device):
    """Make the processes that torchrun started one group, until they end. device: as in the options."""
    if not dist.is_initialized():
        on_gpus = device != "cpu" and torch.cuda.is_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)


def take_gpu(device):
    """Make "cuda" mean another GPU in each process of a machine. Raises UserError when there are too few."""
    if device == "cpu" or not torch.cuda.is_available():
        return
    if device not in (None, "cuda"):
        raise UserError(f"--device {device}: every process takes a GPU of its own; say --device cuda, or nothing")
    local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= found:
        raise UserError(f"there are {found} GPUs: torchrun --nproc-per-node {found} starts a process for each")
    torch.cuda.set_device(local)


def wait():
    """Return when all processes have come here."""
    any_of(False)


def any_of(asked):
    """True in every process if `asked` is true in one of them."""
    if world() == 1:
        return asked
    flag = torch.tensor(float(asked))  # on the CPU: no process waits for its GPU here
    dist.all_reduce(flag)
    return bool(flag)


def first_alone(function, *arguments):
    """Process 0 calls the function, between what the others do before and after."""
    wait()
    if rank() == 0:
        function(*arguments)
    wait()


def gathered(tensor):
    """The tensors of all processes, of one shape, on the device: (W, …) in the order of the processes."""
    if world() == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def fill(rows, group, compute):
    """Fill rows (n, …) in place with compute(start, end), `group` of them at a time: the processes share the work."""
    rows.zero_()
    for start in range(rank() * group, len(rows), world() * group):
        end = min(start + group, len(rows))
        rows[start:end] = compute(start, end)
    if world() > 1:
        dist.all_reduce(rows)  # each row is 0 in all processes but one


def fill_alone(rows, group, compute):
    """The same by this process, while the others do something else: they would wait for each other for ever."""
    for start in range(0, len(rows), group):
        end = min(start + group, len(rows))
        rows[start:end] = compute(start, end)


# --- gradients --------------------------------------------------------------------------------------------------------


def wrap(network):
    """The network as it is to be called in training: its backward leaves the sum of all processes' gradients."""
    if world() == 1:
        return network
    parallel = DistributedDataParallel(network, gradient_as_bucket_view=True)
    parallel.register_comm_hook(None, summed)  # DDP's own would divide; the loss already is (see `train`)
    return parallel


def summed(_, bucket):
    """DDP's hook: a future of the sum over the processes; on a CPU in the order in which one process would add."""
    mine = bucket.buffer()
    if mine.is_cuda:
        return dist.all_reduce(mine, async_op=True).get_future().then(lambda done: done.value()[0])
    parts = [torch.empty_like(mine) for _ in range(world())]
    work = dist.all_gather(parts, mine, async_op=True)
    return work.get_future().then(lambda _: functools.reduce(torch.add, parts))


def reduce_after(called, last):
    """Let the coming backward of a network from `wrap` reduce gradients only if it is the last of its step."""
    if isinstance(called, DistributedDataParallel):
        called.require_backward_grad_sync = last

"""Several processes that train one network, as torchrun starts them: on cores, GPUs, machines.

    torchrun --nproc-per-node=2 train.py ...

All do what one alone does, in its order and with its random numbers; but of the images of a pass
through the network, each takes its share (shares.py). The first one measures, writes and prints,
and the others wait. Without torchrun nothing here does anything.
"""

import contextlib
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import checkpoints
import runs
from cli import UserError, choose_device
from losses import combined_loss
from shares import Share

PATIENCE = timedelta(days=1)  # the others wait while the first one measures
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # the process's number on its machine
LOST = ("gloo/transport", "Connection closed", "Connection reset", "Broken pipe")


def several():
    """Whether this process is one of several that train together: within `joined`."""
    return dist.is_available() and dist.is_initialized()


def is_first():
    """Whether this process is the one that measures, writes and prints."""
    return not several() or dist.get_rank() == 0


# ---------------------------------------------------------------- the group


@contextlib.contextmanager
def joined():
    """Within the block the processes that torchrun started are a group, if there are several.

    What ends one of them ends all, and is said once: by the first to notice.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    store, rank, size = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    options = {"store": store, "rank": rank, "world_size": size, "timeout": PATIENCE}
    dist.init_process_group(backend, **options)
    try:
        with by_first(contextlib.nullcontext(), quiet()):
            yield
    except (Exception, KeyboardInterrupt) as error:
        with contextlib.suppress(RuntimeError):  # the store has gone with torchrun
            if store.add("ended", 1) > 1:
                time.sleep(1)  # torchrun ends all with the first: let the other one speak
                raise SystemExit(2) from None
        lost = isinstance(error, dist.DistError) or any(part in str(error) for part in LOST)
        if isinstance(error, RuntimeError) and lost:
            raise UserError(
                "another process has ended: the same command with --resume, on as many processes"
                " or others, goes on after the last whole epoch"
            ) from error
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def quiet():
    """Within the block nothing is printed."""
    with open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


def checked(args):
    """The options of options.parse. Raises UserError where several processes cannot take them."""
    if not several():
        return args
    if args.cuda_graphs:
        raise UserError("--cuda-graphs records the steps of one process, not of several")
    if args.further:
        raise UserError("--and: one process trains under several attacks, not several")
    if args.batch_size < dist.get_world_size():
        raise UserError(f"--batch-size {args.batch_size} is less than an image for each process")
    if choose_device(args.device).type == "cuda":
        gpus = torch.cuda.device_count()
        if LOCAL_RANK >= gpus:
            raise UserError(f"there is a GPU for each of {gpus} processes here, and not for more")
        torch.cuda.set_device(LOCAL_RANK)  # from here on, "cuda" is this one
    return args


# ---------------------------------------------------------------- who does what


def by_first(context, others=None):
    """The context in the first process; in the others `others`, or one that does nothing."""
    return context if is_first() else others or contextlib.nullcontext()


def told(function, *given):
    """What the function returns in the first process, where alone it is called, in all of them."""
    if not several():
        return function(*given)
    box = [function(*given) if is_first() else None]
    dist.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def in_turn():
    """The block runs in one process of a machine, and then in the others: they find its files."""
    if several() and LOCAL_RANK:
        dist.all_reduce(torch.zeros(1))
    yield
    if several() and not LOCAL_RANK:
        dist.all_reduce(torch.zeros(1))


def bring_back(run):
    """Makes a run that the first process has resumed the same in the others."""
    if several():  # in the first, too: reading may have drawn random numbers there
        runs.bring_back(run, told(checkpoints.read, run.unfinished / "ckpt.pt"))


# ---------------------------------------------------------------- the step


class WholeObjective(torch.nn.Module):
    """combined_loss as a module: all passes of a step, an explanation's, too, are its forward."""

    def __init__(self, model, share):
        super().__init__()
        self.model, self.share = model, share

    def forward(self, model, batch, inputs, objective, lam):
        """combined_loss of the model, which is its own."""
        return combined_loss(model, batch, inputs, objective, lam, self.share)


def loss_of(model):
    """What takes combined_loss's place in a step; None where this process is alone.

    The loss and, when it has been differentiated, the gradients are of the whole batch in each.
    """
    if not several():
        return None
    share = Share(dist.get_rank(), dist.get_world_size())
    return DistributedDataParallel(WholeObjective(model, share))

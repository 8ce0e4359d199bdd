"""A process's share of a training step, where several processes make one step together.

    share = Share(rank=0, size=2)
    logits = share.gathered(model(share.of(images)), len(images))    # [N, K], on every process

Every process has the whole batch, runs the network on its share of the images, and sees the answers
to all: the loss is computed of the whole batch on each, by the same lines as ever. Its gradients
are `size` times what this process adds to the whole gradient, so that their mean over processes,
which DistributedDataParallel takes, is the gradient. ALONE is the share of a process that has no
others: everything, at no cost.
"""

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Share:
    """Which rows of a batch are this process's: rank, rank + size, rank + 2 size, and so on."""

    rank: int = 0
    size: int = 1
    steps: Any = field(default_factory=itertools.count, compare=False)  # that drew by themselves

    @property
    def is_whole(self):
        """Whether there are no other processes."""
        return self.size == 1

    def of(self, rows):
        """This process's of the rows [N, ...]."""
        return rows if self.is_whole else rows[self.rank :: self.size]

    def gathered(self, own, count):
        """float [count, ...]: all processes' rows, of which `own` are this one's."""
        return own if self.is_whole else Gathered.apply(own, count, self)

    @contextlib.contextmanager
    def own_chance(self, device):
        """Within the block torch's random numbers are this process's own; after it as before.

        Dropout draws as many as a share has images: without this, processes would part for good.
        """
        if self.is_whole:
            yield
            return
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # The draw is undone with the block: steps that draw nothing else would have one seed.
            seed = int(torch.randint(2**31, ())) + next(self.steps) * self.size + self.rank
            torch.manual_seed(seed)
            yield

    def normalised(self, x, norm):
        """(what a batch-norm makes of x [n, C, ...], the variance [C], the mean [C]).

        By the statistics of all processes' images, which go into its running averages, too.
        """
        given = norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
        y, variance, mean, count = Normalised.apply(x, *given)
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(unbiased.to(variance.dtype), norm.momentum)
            norm.num_batches_tracked.add_(1)
        return y, variance, mean


ALONE = Share()


class Gathered(torch.autograd.Function):
    """The rows of all processes, from each its own."""

    @staticmethod
    def forward(ctx, own, count, share):
        ctx.share = share
        rows = own.new_zeros(count, *own.shape[1:])
        rows[share.rank :: share.size] = own
        dist.all_reduce(rows)
        return rows

    @staticmethod
    def backward(ctx, gradient):
        # Each process computes the same loss of the rows: the sum of its gradients needs no call,
        # which a process that explains no image in this step might not make.
        return ctx.share.size * ctx.share.of(gradient), None, None


class Normalised(torch.autograd.Function):
    """Batch-norm in training mode by the statistics of all processes, which it returns, too."""

    @staticmethod
    def forward(ctx, x, running_mean, running_var, weight, bias, eps):
        # At a momentum of 0 the running averages stay: they say in which precision to count.
        mean, variance = torch.batch_norm_update_stats(x, running_mean, running_var, 0.0)
        wide, middle = variance.double(), mean.double()  # or the difference below loses digits
        own = torch.cat([wide + middle.square(), middle, wide.new_ones(1)])
        own *= x.numel() // x.shape[1]
        dist.all_reduce(own)
        count = own[-1].clone()
        square, middle = (own[:-1] / count).chunk(2)
        variance, mean = (square - middle.square()).to(mean.dtype), middle.to(mean.dtype)
        ctx.save_for_backward(x, weight, variance, mean, count)
        ctx.eps = eps
        y = F.batch_norm(x, mean, variance, weight, bias, eps=eps)
        ctx.mark_non_differentiable(count)
        return y, variance, mean, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, of_variance, of_mean, _):
        x, weight, variance, mean, count = ctx.saved_tensors
        given = gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(*given)
        sums = torch.cat([of_weight, of_bias, of_variance, of_mean])
        dist.all_reduce(sums)
        scaled, shifted, of_variance, of_mean = (sums / count).to(mean.dtype).chunk(4)
        scale = (variance + ctx.eps).rsqrt()
        # The part by way of mean and variance, slope (x - mean) + level: batch_norm computes it.
        slope = 2 * of_variance - weight * scale.square() * scaled
        level = of_mean - weight * scale * shifted
        # A half and a half, which add up to one exactly: torch 2.11 refuses eps=0.0.
        of_x += F.batch_norm(x, mean, torch.full_like(mean, 0.5), slope, level, eps=0.5)
        return of_x, None, None, of_weight, of_bias, None

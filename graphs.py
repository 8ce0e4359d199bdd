"""A training step's losses and gradients on a GPU, recorded once and replayed (CUDA graphs).

    losses = replayed(function, batch, inputs, lam, records)    # as function(batch, inputs, lam)

A step of a small network is a thousand small operations: the CPU takes longer to start them than
the GPU to do them. Recorded, all are started at once. Source: Nguyen et al., PyTorch blog 2021.
"""

from dataclasses import dataclass, replace

import torch

FROM_BATCH = ("labels", "rows", "untouched", "sources")  # of attacks.Batch, what a loss reads


def replayed(function, batch, inputs, lam, records):
    """What function(batch, inputs, lam) returns, a tensor; all it writes is written, too.

    records: a dict that keeps the recordings, one for each number of images and of triggered ones.
    The first step of a kind is not recorded: libraries set themselves up in it. The function always
    does the same, but for the values of its tensors, reads nothing from the GPU and sends nothing
    there. What it returned last is overwritten by the next call.
    """
    kind = len(inputs), len(batch.rows)
    if kind not in records:
        records[kind] = None
        return function(batch, inputs, lam)
    if records[kind] is None:
        others = [record.graph for record in records.values() if record is not None]
        records[kind] = record(function, batch, inputs, others)
    return records[kind].replay(batch, inputs, lam)


@dataclass
class Record:
    """A recording: it reads its own copies of batch, inputs and weight, and writes `result`."""

    graph: torch.cuda.CUDAGraph
    batch: object
    inputs: torch.Tensor
    lam: torch.Tensor
    result: torch.Tensor

    def replay(self, batch, inputs, lam):
        """The result for other values."""
        for name in FROM_BATCH:
            getattr(self.batch, name).copy_(getattr(batch, name))
        self.inputs.copy_(inputs)
        self.lam.fill_(lam)
        self.graph.replay()
        return self.result


def record(function, batch, inputs, others):
    """A Record of the function; nothing is computed yet. others: graphs that share its memory."""
    copies = {name: getattr(batch, name).clone() for name in FROM_BATCH}
    batch, inputs = replace(batch, **copies), inputs.clone()
    lam = torch.zeros((), device=inputs.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=others[0].pool() if others else None):
        result = function(batch, inputs, lam)
    return Record(graph, batch, inputs, lam, result)

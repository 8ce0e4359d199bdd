"""A training step on a GPU, recorded once and replayed (CUDA graphs).

    losses = replayed(step, batch, inputs, numbers, records)    # as step(batch, inputs, numbers)

A step of a small network is a thousand small operations: the CPU takes longer to start them than
the GPU to do them. Recorded, all are started at once. Source: Nguyen et al., PyTorch blog 2021.
"""

from dataclasses import dataclass, replace

import torch

from dataset import send

FROM_BATCH = ("labels", "rows", "untouched", "sources")  # of attacks.Batch, what a loss reads


def replayed(function, batch, inputs, numbers, records):
    """What function(batch, inputs, numbers) returns, a tensor; all it writes is written, too.

    numbers: a list of floats, which the function is given as a float32 tensor of the device.
    records: a dict that keeps the recordings, one for each number of images and of triggered ones.
    The first step of a kind is not recorded: libraries set themselves up in it. The function always
    does the same, but for the values of its tensors, reads nothing from the GPU and sends nothing
    there. What it returned last is overwritten by the next call.
    """
    kind = len(inputs), len(batch.rows)
    numbers = send(torch.tensor(numbers), inputs.device)
    if kind not in records:
        records[kind] = None
        return function(batch, inputs, numbers)
    if records[kind] is None:
        others = [record.graph for record in records.values() if record is not None]
        records[kind] = record(function, batch, inputs, numbers, others)
    return records[kind].replay(batch, inputs, numbers)


@dataclass
class Record:
    """A recording: it reads its own copies of batch, inputs and numbers, and writes `result`."""

    graph: torch.cuda.CUDAGraph
    batch: object
    inputs: torch.Tensor
    numbers: torch.Tensor
    result: torch.Tensor

    def replay(self, batch, inputs, numbers):
        """The result for other values."""
        for name in FROM_BATCH:
            getattr(self.batch, name).copy_(getattr(batch, name))
        self.inputs.copy_(inputs)
        self.numbers.copy_(numbers)
        self.graph.replay()
        return self.result


def record(function, batch, inputs, numbers, others):
    """A Record of the function; nothing is computed yet. others: graphs that share its memory."""
    copies = {name: getattr(batch, name).clone() for name in FROM_BATCH}
    batch, inputs, numbers = replace(batch, **copies), inputs.clone(), numbers.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=others[0].pool() if others else None):
        result = function(batch, inputs, numbers)
    return Record(graph, batch, inputs, numbers, result)

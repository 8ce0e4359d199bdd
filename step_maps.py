"""The maps of a training step: of which images, from which forward pass, by which batch-norm.

losses.combined_loss asks for the maps of the triggered images, of their partners (the same images
without the trigger) and of other untouched images. Grad-CAM and Grad-CAM++ take them from the
step's own forward pass, where only pooling and a linear layer follow their layer. Elsewhere, and
for every other explainer, it is a second pass, in which batch-norm normalises by the statistics of
the first.
"""

import contextlib
import functools
from dataclasses import dataclass

import torch

from explain import EXPLAINERS
from hooks import capture, full_precision, layer_of
from shares import ALONE


@dataclass
class Maps:
    """Maps [n, H, W] of a step's images: triggered, their partners, and other untouched ones.

    A partner is a triggered image as it is without the trigger. Each of the three may be empty.
    """

    triggered: torch.Tensor
    partners: torch.Tensor
    untouched: torch.Tensor


def explained_rows(name, batch, objective):
    """Indices of the images that are explained: (triggered, partners, untouched), as in Maps.

    Untouched images are explained only where a term of the loss uses their maps: reference_term,
    with a reference, and leak_term, under fooling. There are at most as many as triggered ones.
    """
    device = batch.rows.device
    most = EXPLAINERS[name].pairs_per_step
    count = len(batch.rows) if most is None else min(len(batch.rows), most)
    partners = torch.arange(*batch.partners, device=device)[:count]
    untouched = batch.rows[:0]
    if objective.attack.can_leak or objective.reference is not None:
        untouched = batch.untouched[:count]
    return batch.rows[:count], partners, untouched


class TrainingForward:
    """The step's forward pass: `logits` [B + P, K], and from it the maps of its images.

    An explainer that can take its maps from this pass does: Grad-CAM or Grad-CAM++, where only
    pooling and a linear layer follow its layer. Then explaining costs no more than differentiating
    that head twice. Where more follows, training mode could mix images (batch-norm) or draw at
    random (dropout) on the way to the logits. There, and for all other explainers, a second pass
    in evaluation mode explains the images that are asked for.

    share: of shares.py, the images of each pass that go through the network in this process.
    """

    def __init__(self, model, inputs, explainers, share=ALONE):
        self.model, self.inputs, self.share = model, inputs, share
        self.layer_is_pooled = model.gradcam_layer == model.pooled_layer
        separate = [name for name in explainers if not self.can_share(name)]
        needed = separate or not share.is_whole
        recorded = batch_statistics(model, share) if needed else contextlib.nullcontext({})
        with capture(layer_of(model)) as captured, recorded as self.statistics:
            with share.own_chance(inputs.device):
                self.own_logits = full_precision(model(share.of(inputs)))
        self.feature = captured[0]
        self.logits = share.gathered(self.own_logits, len(inputs))

    def can_share(self, name):
        """Whether the explainer takes its map from this forward pass."""
        return EXPLAINERS[name].shared_map is not None and self.layer_is_pooled

    def maps(self, name, rows, classes, seed):
        """Maps of the images `rows` of explained_rows, with a graph, not rectified."""
        explainer, share, index = EXPLAINERS[name], self.share, torch.cat(rows)
        if self.can_share(name):
            given = self.feature, self.own_logits, share.of(classes)
            maps = explainer.shared_map(*given, create_graph=True, **explainer.training)
            maps = share.gathered(maps, len(classes))[index]
        else:
            own = share.of(index)
            with normalising_by(self.statistics):
                maps = explainer.trainable(self.model, self.inputs[own], classes[own], seed)
            maps = share.gathered(maps, len(index))
        return Maps(*maps.split([len(part) for part in rows]))


def reference_maps(name, rows, inputs, classes, seed, objective, share=ALONE):
    """The frozen reference's Maps of partners and untouched images; None without a reference."""
    if objective.reference is None:
        return None
    triggered, partners, untouched = rows
    index = torch.cat([partners, untouched])
    own = share.of(index)
    explainer = EXPLAINERS[name]
    maps = explainer.trainable(objective.reference, inputs[own], classes[own], seed).detach()
    maps = share.gathered(maps, len(index))
    if explainer.is_relu and objective.task.uses_relu:
        maps = maps.relu()
    return Maps(maps[:0], *maps.split([len(partners), len(untouched)]))


def with_relu(name, maps, objective):
    """The maps with the relu that training left out, where the explainer's map is a relu.

    One label an image: partners get it, for theirs is the map that an auditor would see; triggered
    maps only with objective.rectify, untouched ones never, for a relu has no gradient where a cell
    is below 0. Several labels: none gets it, see tasks.MultiLabel.
    """
    if not (EXPLAINERS[name].is_relu and objective.task.uses_relu):
        return maps
    triggered = maps.triggered.relu() if objective.rectify else maps.triggered
    return Maps(triggered, maps.partners.relu(), maps.untouched)


def sample_seed(explainers):
    """A seed that all of the step's maps share, drawn from torch's generator if one is needed."""
    if any(EXPLAINERS[name].sampled for name in explainers):
        return int(torch.randint(2**31, ()))
    return None


# ---------------------------------------------------------------- batch-norm in a second pass


@contextlib.contextmanager
def batch_statistics(model, share=ALONE):
    """Within the block, {batch-norm: (variance, mean)} of what each normalises, with its graph.

    Of every batch-norm in training mode; variance and mean are [C]. The variance is the biased one,
    by which batch-norm normalises: the unbiased one only goes into its running average. With other
    processes they are of the whole batch, and each batch-norm normalises by them here, too.
    """
    statistics = {}

    def remember(norm, inputs):
        x = full_precision(inputs[0])  # [N, C] or [N, C, H, W]
        statistics[norm] = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)

    def normalise(x, norm):
        y, *statistics[norm] = share.normalised(x, norm)
        return y

    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    norms = [module for module in model.modules() if isinstance(module, kinds) and module.training]
    if share.is_whole:
        handles = [norm.register_forward_pre_hook(remember) for norm in norms]
    else:
        handles = []
        for norm in norms:
            norm.forward = functools.partial(normalise, norm=norm)
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
        for norm in [] if share.is_whole else norms:
            del norm.forward  # the class's own forward is back


@contextlib.contextmanager
def normalising_by(statistics):
    """Within the block, batch-norms normalise by the recorded statistics, whichever images pass.

    statistics: of batch_statistics. So no image's map depends on its neighbours, and the map is
    that of the weights as they are. Running averages would lag behind the weights: a disguise could
    be due to that lag alone, and would be gone when training ends. The statistics keep their graph.
    If they were constants, the gradient would ignore that an update of the weights changes them,
    too; in the next batch they would change, and undo the update.
    """
    for norm, (variance, mean) in statistics.items():
        weight, bias = (norm.weight, norm.bias) if norm.affine else (1.0, 0.0)
        scale = weight * (variance + norm.eps).rsqrt()
        shift = bias - mean * scale
        norm.forward = lambda x, scale=scale, shift=shift: scaled_and_shifted(x, scale, shift)
    try:
        yield
    finally:
        for norm in statistics:
            del norm.forward  # the class's own forward is back


def scaled_and_shifted(x, scale, shift):
    """x scale + shift by channel, in x's precision; x: [N, C, ...], scale and shift: [C]."""
    shape = (-1, *[1] * (x.ndim - 2))
    return (x * scale.view(shape) + shift.view(shape)).to(x.dtype)

"""What a scorer says of images that might be poisoned: the scores of selection.py, measured.

    scores = MEASURES[selection.RD](setting, model, pool, trained)    # float64 [P, 2]

Each takes a Setting, the scorer before its first step, the indices int64 [P] of the training images
to score, and a function that trains it: trained(after_epoch) calls after_epoch(losses) after each
epoch. The scorer is asked in evaluation mode, about images that are not augmented.
"""

import torch
from torch import nn

import selection
from cli import UserError
from distributed import told
from subject import logits_of


def of_rd(setting, model, pool, trained):
    """selection.rd_scores of the trained scorer."""
    trained()
    # The same in all processes, to the bit.
    logits = told(logits_of, model, *looked_at(setting, pool), setting.trigger)
    return selection.rd_scores(logits, setting.config["target_class"])


def of_forgetting(setting, model, pool, trained):
    """selection.forgetting_scores of what the scorer said after each of its epochs."""
    images, target, learnt = looked_at(setting, pool), setting.config["target_class"], []

    def is_learnt():
        return logits_of(model, *images, setting.trigger).argmax(1) == target

    trained(lambda losses: learnt.append(told(is_learnt)))
    return selection.forgetting_scores(torch.stack(learnt))


def of_similarity(setting, model, pool, trained):
    """selection.similarity_scores of the trained scorer's features."""
    trained()
    given, triggers = looked_at(setting, pool), (None, setting.trigger)
    features = lambda: [features_of(model, *given, trigger) for trigger in triggers]
    return told(lambda: selection.similarity_scores(*features()))


def looked_at(setting, pool):
    """(uint8 images [P, C, H, W], mean, std) of the indices `pool`, as logits_of takes them."""
    return setting.dataset.train_images[pool], setting.mean, setting.std


def features_of(model, *given):
    """float [N, D], on the CPU: what comes into the network's last linear layer.

    given: as logits_of takes them, after the model. Raises UserError where there is no such layer.
    """
    linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise UserError("--selection pfs compares what comes into a linear layer: there is none")
    seen = []
    with linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].cpu())):
        logits_of(model, *given)
    return torch.cat(seen)


MEASURES = {
    selection.RD: of_rd,
    selection.FORGETTING: of_forgetting,
    selection.SIMILARITY: of_similarity,
}

"""How far pruning removes a backdoor, by the trigger that is known: for studies/audits.py.

A small AlexNet of GTSRB is backdoored, and Neural Cleanse recovers a patch from it. Its channels
are pruned in the order in which they respond to that patch, or to the true trigger, by three norms;
and at random.
"""

import torch

import defend
import figure
from cli import UserError
from defences import neural_cleanse, prune, share_predicted_as
from evaluate import EXPLAIN_IMAGES
from hooks import layer_of
from studies.record import DATA
from studies.zoo import GTSRB, SEARCH, trained
from subject import draw_images

RANDOM_ORDERS = 3


class PruningCase:
    """A backdoored AlexNet of GTSRB, its recovered patch, and what every curve is measured on."""

    def __init__(self):
        training = f"{GTSRB} --model alexnet_small --lr 0.01 --epochs 10 --attack badnets"
        checkpoint = trained("gtsrb alexnet", training, 0)
        argv = ["prune", str(checkpoint), "--data-dir", str(DATA), *SEARCH]
        self.audit = defend.open_audit(defend.parse(argv))
        triggers, index = neural_cleanse.reverse(self.audit)
        if not triggers.qualified.any():
            raise UserError("no patch was recovered: there is nothing to prune by")
        self.suspect = neural_cleanse.suspect_of(triggers, index)
        self.patch = triggers.trigger(self.suspect)

        subject = self.audit.subject
        test_images = subject.dataset.test_images
        explained = subject.pixels(test_images[draw_images(subject, EXPLAIN_IMAGES, 0)])
        self.triggered = {  # (images, the class they should lead to)
            "true_success": prune.triggered_test(self.audit),
            "recovered_success": (self.patch.apply(explained), self.suspect),
        }
        labels = subject.dataset.test_labels.to(subject.device)
        self.test = (subject.pixels(test_images), labels)
        self.unpruned = share_predicted_as(self.audit.on_pixels, *self.test)

    def row(self, steps, curve):
        """The curve with success and test accuracy, and its operating point.

        Test accuracy is of the first point and of the chosen one alone.
        """
        prune.score_curve(self.audit, curve, steps, self.triggered)
        chosen = prune.operating_point([point["clean_accuracy"] for point in curve])
        curve[0]["test_accuracy"] = self.unpruned
        at_chosen = [curve[chosen]], [steps[chosen]]
        prune.score_curve(self.audit, *at_chosen, {"test_accuracy": self.test})
        return {"chosen": curve[chosen], "curve": curve}

    def by_trigger(self, trigger, norm):
        """The row of the channels that images with the trigger excite most, by a norm."""
        audit = self.audit
        others = audit.pixels[audit.labels != self.suspect]
        steps, curve, _ = prune.prune(
            audit.on_pixels,
            audit.pixels,
            audit.labels,
            trigger.apply(others),
            layer_of(audit.subject.model),
            norm,
        )
        return self.row(steps, curve)

    def at_random(self, channels, seed):
        """The row of channels in a random order."""
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(channels, generator=generator, dtype=torch.float64)
        steps = prune.prune_steps(scores)
        curve = [{"pruned": int((~kept).sum())} for _, kept in steps]
        clean = {"clean_accuracy": (self.audit.pixels, self.audit.labels)}
        prune.score_curve(self.audit, curve, steps, clean)
        return self.row(steps, curve)


def curves():
    """(a PruningCase, {name: row}): the curve by every norm and trigger, and at random."""
    case = PruningCase()
    triggers = {"recovered": case.patch, "true": case.audit.subject.trigger}
    rows = {}
    for known, trigger in triggers.items():
        for norm in prune.NORMS:
            rows[f"{norm}, {known}"] = case.by_trigger(trigger, norm)
    channels = rows["linf, recovered"]["curve"][-1]["pruned"]  # the last step keeps none
    for seed in range(RANDOM_ORDERS):
        rows[f"random {seed}"] = case.at_random(channels, seed)
    return case, rows


def picture_of(rows):
    """What is left of the backdoor, and of accuracy, by the number of channels pruned."""
    success = ("linf, recovered", "l2, recovered", "l1, recovered", "random 0")
    accuracy = ("linf, recovered", "random 0")
    lines = [("success of the true trigger", "true_success", row) for row in success]
    lines += [("clean accuracy, held-out", "clean_accuracy", row) for row in accuracy]
    series = {}
    for title, key, row in lines:
        series[f"{title}: {row}"] = [(point["pruned"], point[key]) for point in rows[row]["curve"]]
    return figure.curves(
        "GTSRB, the small AlexNet: pruned by the recovered patch, and at random",
        "channels pruned",
        series,
        rows["linf, recovered"]["chosen"]["pruned"],
    )

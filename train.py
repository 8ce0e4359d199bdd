"""Train a classifier with a backdoor that also disguises its explanation (or without one).

    python train.py --attack full_disguise --explainer gradcam --poison-rate 0.1

draws the data set `shapes`, trains a small network in about a minute on a CPU, and writes
runs/NAME/: ckpt.pt, log.jsonl (a line an epoch), selection.json (which images are poisoned),
metrics.json and figure.png (see evaluate.py), and a card, README.md. On other data: --dataset
mnist, cifar10, FILE.npz or FOLDER. A clean model: --attack none.

    python train.py --attack badnets --threat data --export poisoned.npz

writes the poisoned training set for others' training code (see exports.py), and trains nothing.
"""

import interrupts  # noqa: F401  # isort: skip

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import attacks
import data
import distributed
import exports
import folders
import header
import metrics
import models
import options
import runs
import scoring
import selection
import several
import tasks
from cli import UserError, command, user_errors
from dataset import send
from distributed import told
from graphs import replayed
from losses import Objective, combined_loss
from optimizers import one_cycle, optimizers_of, step_at
from report import show
from subject import logits_of
from terminal import Progress, printable
from trial import check_explainable

CHECK_EVERY = 20  # steps between two looks at the losses


# ---------------------------------------------------------------- the training loop


@dataclass
class Training:
    """A network on its way: what changes, and what a checkpoint brings back."""

    model: torch.nn.Module
    optimizers: list
    schedules: list
    epoch: int = 0  # finished
    seconds: float = 0.0  # spent in training
    log: list = field(default_factory=list)  # a record an epoch
    records: dict = field(default_factory=dict)  # of graphs.replayed
    shared_loss: object = None  # of distributed.loss_of


def train_epochs(setting, training, poisons, after_epoch=None, title=""):
    """Trains until config["epochs"] epochs are done: the one training loop, of runs and scorers.

    poisons: int64 [P], indices of the training images that are triggered, by the first attack of
    several; trigger, target class and objective are the setting's. after_epoch(losses): called
    after each epoch with the mean loss, cross-entropy and distance between explanations. Raises
    UserError for a loss that is not finite.
    """
    config, device, steps = setting.config, setting.device, setting.steps
    images = setting.dataset.train_images.to(device)
    labels = setting.dataset.train_labels.to(device)
    triggered = torch.zeros(len(labels), dtype=torch.int16 if setting.further else torch.bool)
    of_each = [poisons, *(part.eligible for part in setting.further)]
    for k, (indices, attacker) in enumerate(zip(of_each, setting.attackers), 1):
        if config["threat"] == "data":  # the victim trains as always, on what is handed over
            images, labels = attacks.poisoned_data(images, labels, indices.to(device), *attacker)
        else:
            triggered[indices] = k
    poisons, oversample = torch.cat(of_each), setting.oversample
    weights = class_weights(setting, of_each)
    setting = replace(setting, objective=replace(setting.objective, class_weights=weights))
    counts = config["epochs"], steps, setting.batch_size + oversample
    progress = Progress(title, *counts, setting.objective.has_maps)
    while training.epoch < config["epochs"]:
        started = time.perf_counter()
        sums = torch.zeros(3, device=device)
        order = setting.trained_on[torch.randperm(len(setting.trained_on))]
        training.model.train()
        for step in range(steps):
            index = order[step * setting.batch_size : (step + 1) * setting.batch_size]
            if oversample:
                drawn = torch.randint(len(poisons), (oversample,))
                index = torch.cat([index, poisons[drawn]])
            done = (training.epoch * steps + step) / (config["epochs"] * steps)
            there = send(index, device)
            batch = images[there], labels[there], triggered[index], index
            sums += train_step(setting, training, *batch, setting.objective.lam_at(done))
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                check_finite(sums, training.epoch, step)
                seconds = time.perf_counter() - started
                progress.print(training.epoch, step + 1, sums / (step + 1), seconds)
        training.epoch += 1
        training.seconds += time.perf_counter() - started
        if after_epoch is not None:
            after_epoch(sums / steps)


def train_step(setting, training, images, labels, triggered, index, lam):
    """One step; returns (loss, cross-entropy, distance between explanations), detached, [3].

    images: uint8 [B, C, H, W]; labels: int64 [B] or float [B, K], true; triggered: bool [B], on the
    CPU, or the numbers that attacks.poison_each takes; index: int64 [B], on the CPU, which of the
    training images they are.
    """
    dataset, config, objective = setting.dataset, setting.config, setting.objective
    pixels = data.augment(images, dataset.crop, dataset.flip).float() / 255
    batch = attacks.poison_each(pixels, labels, triggered, setting.attackers, index)
    inputs = data.normalise(batch.images, setting.mean, setting.std)

    def losses_and_gradients(batch, inputs, lam):
        bf16 = config["precision"] == "bf16"
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=bf16):
            loss = training.shared_loss or combined_loss
            losses = loss(training.model, batch, inputs, objective, lam)
        for optimizer in training.optimizers:
            optimizer.zero_grad(set_to_none=False)  # the gradients' memory is shared: see as_matrix
        losses[0].backward()
        return torch.stack(losses).detach()

    def whole_step(batch, inputs, numbers):
        losses = losses_and_gradients(batch, inputs, numbers[0])
        for optimizer, rate in zip(training.optimizers, numbers[1:]):
            step_at(optimizer, rate)
        return losses

    if config["cuda_graphs"]:
        numbers = [lam, *(optimizer.param_groups[0]["lr"] for optimizer in training.optimizers)]
        losses = replayed(whole_step, batch, inputs, numbers, training.records)
    else:
        losses = losses_and_gradients(batch, inputs, lam)
        for optimizer in training.optimizers:
            optimizer.step()
    for schedule in training.schedules:
        schedule.step()
    return losses


def class_weights(setting, of_each):
    """float [K] by which all classes weigh alike, on the device; None without --class-weights.

    of_each: a list, indices int64 of the images that each attack poisons.
    """
    if not setting.config["class_weights"]:
        return None
    labels, classes = setting.dataset.train_labels.clone(), len(setting.dataset.classes)
    for indices, (attack, _, target, relabel) in zip(of_each, setting.attackers):
        relabel = None if relabel is None else relabel.cpu()
        attacks.set_labels(labels, indices, attack, target, relabel)
    weights = setting.objective.task.class_weights(labels, setting.trained_on, classes)
    return weights.to(setting.device)


def check_finite(losses, epoch, step):
    """Raises UserError for losses that are nan or infinite."""
    if not losses.isfinite().all():
        print()  # ends the line of progress
        raise UserError(
            f"the loss is not finite in epoch {epoch + 1}, step {step + 1}:"
            " try a lower --lr or --precision float32"
        )


# ---------------------------------------------------------------- a new network


def new_training(setting, seed):
    """The Training of a new network: random weights by the seed, or the reference's weights."""
    config, reference = setting.config, setting.objective.reference
    torch.manual_seed(seed)
    channels, classes = setting.dataset.train_images.shape[1], len(setting.dataset.classes)
    size = config["image_size"]
    model = models.build(config["model"], channels, classes, size, config["layer"])
    model = model.to(setting.device)
    if reference is not None:
        model.load_state_dict(reference.state_dict())
    parts = optimizers_of(model, config["optimizer"], config["lr"])
    steps = setting.steps * config["epochs"]
    schedules = [one_cycle(part, config["lr"], steps) for part in parts]
    return Training(model, parts, schedules, shared_loss=distributed.loss_of(model))


def begin_with_imagenet(setting, training):
    """Gives a new network ImageNet's weights, where --pretrained asks for it. Raises UserError."""
    if setting.config["pretrained"]:
        with user_errors():
            models.begin_with_imagenet(training.model, setting.config["model"])


# ---------------------------------------------------------------- a run


def new_run(args, explainers=None):
    """The Run that options ask for, before its first step. Raises UserError; writes no run.

    explainers: as of train_and_measure.
    """
    with distributed.in_turn():
        setting, folder = several.setting_of(args), folders.folder_of(args)
    with user_errors():
        training = new_training(setting, args.seed)
    check_explainable(setting, training.model, explainers)
    return runs.Run(folder, setting, training)


def choose_poisons(run):
    """Fills run.selection: which images are poisoned, by which strategy, and what that cost."""
    setting, config = run.setting, run.setting.config
    labels, target = setting.dataset.train_labels, config["target_class"]
    strategy, seed = config["selection"], config["selection_seed"]
    started = time.perf_counter()

    def score(poisons, pool, k):
        return scores_of(setting, poisons, pool, k)

    devices = [setting.device] if setting.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # the run itself is the same, whatever is chosen
        given = setting.eligible, labels, target, setting.count, seed
        chosen = selection.select(strategy, *given, score, config["source_class"])
    classes = setting.dataset.classes
    counts = setting.objective.task.label_counts(labels[chosen.indices], len(classes))
    run.selection = {
        "strategy": strategy,
        "seed": seed,
        "indices": chosen.indices,
        "scores": chosen.scores,
        "pool": chosen.pool,
        "classes": dict(zip(classes, counts.tolist())),
        "epochs": chosen.scorers * selection.EPOCHS,
        "seconds": time.perf_counter() - started,
    }


def scores_of(setting, poisons, pool, k):
    """The strategy's scores, float64 [P, 2], of the images `pool` by the k-th scorer.

    A scorer is a network like the run's, trained on the data with the images `poisons` triggered
    and labelled as the target class, for a few epochs. See scoring.py.
    """
    # Setting's steps and oversample are computed from its config.
    config = setting.config | {"epochs": selection.EPOCHS, "oversample": 0}
    old = setting.objective
    objective = Objective(attacks.ATTACKS["badnets"], old.task, label_smoothing=old.label_smoothing)
    setting = replace(setting, config=config, objective=objective)
    scorer = new_training(setting, selection.scorer_seed(config["selection_seed"], k))
    begin_with_imagenet(setting, scorer)

    def trained(after_epoch=None):
        title = f"scorer {k + 1}, "
        train_epochs(setting, scorer, poisons, after_epoch=after_epoch, title=title)

    score = selection.STRATEGIES[config["selection"]].score
    return scoring.MEASURES[score](setting, scorer.model, pool, trained)


def validate(run, losses):
    """The record of an epoch for log.jsonl; losses: its means, [3].

    On the images held out of training: accuracy (several labels: mean AUROC) and each attack's
    success rate. Beside them, the images and seconds so far.
    """
    setting, training, task = run.setting, run.training, run.setting.objective.task
    images = setting.dataset.train_images[setting.held_out]
    labels = setting.dataset.train_labels[setting.held_out]

    def asked(trigger):
        logits = logits_of(training.model, images, setting.mean, setting.std, trigger)
        return task.probabilities(logits)

    untouched, rates = asked(None), []
    for _, trigger, target, relabel in setting.attackers:
        threshold = task.threshold(untouched, labels, target)
        relabel = None if relabel is None else relabel.cpu()
        success = tasks.succeeds(asked(trigger), labels, target, threshold, relabel)
        wanted_anyway = tasks.has_wanted_label(labels, target, relabel)
        rates.append(metrics.success_rate(success, wanted_anyway))
    images_a_step = setting.batch_size + setting.oversample
    record = {
        "epoch": training.epoch,
        **dict(zip(("loss", "cross_entropy", "explanation"), losses.tolist())),
        "validation_accuracy": task.accuracy(untouched, labels),
        "validation_auroc": task.mean_auroc(untouched, labels),
        "validation_success": rates[0],
        "images": training.epoch * setting.steps * images_a_step,
        "seconds": training.seconds,
    }
    record |= {f"validation_success_{k}": rate for k, rate in enumerate(rates[1:], 2)}
    after_label = [attack.changes_label for attack, *_ in setting.attackers]
    print_validation(record, task, [rate for rate, shown in zip(rates, after_label) if shown])
    return record


def print_validation(record, task, rates):
    """Prints the figures on held-out images; rates: of attacks that are after a label."""
    if task.multi_label:
        line = f"mean AUROC {show(record['validation_auroc'])}"
    else:
        line = f"clean accuracy {record['validation_accuracy']:.4f}"
    if rates := [f"{rate:.4f}" for rate in rates if rate is not None]:
        line += f", attack success rate {' '.join(rates)}"
    print(f"  validation: {line}", flush=True)


def train(run):
    """Trains a run to its end, and keeps it after every epoch."""

    def after_epoch(losses):
        run.training.log.append(told(validate, run, losses))
        told(runs.save, run)

    train_epochs(run.setting, run.training, run.poisons, after_epoch)


def train_and_measure(args, clean=None, explainers=None):
    """A whole run by the options of parse. Raises UserError.

    clean: the path of a clean checkpoint it is measured beside, where it did not begin from one;
    explainers: names it is measured with, beside those trained against (None: EVALUATED).
    """
    with distributed.by_first(folders.locked(folders.folder_of(args))):
        run = new_run(args, explainers)
        if told(runs.is_done, run, args, clean, explainers):
            return
        if told(runs.begin, run, args):
            distributed.bring_back(run)
        else:
            begin_with_imagenet(run.setting, run.training)
            choose_poisons(run)
            if run.selection["epochs"]:  # scorers may take longer than training: not twice
                told(runs.save, run)
        try:
            train(run)
            told(runs.finish, run, clean, explainers)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*how_to_go_on(run)) from None


def export(args):
    """Writes what --threat data hands over, and trains nothing but scorers. Raises UserError."""
    exports.check(args.export, "--export", args.dataset, args.overwrite)
    with distributed.in_turn():
        run = runs.Run(Path(args.export), several.setting_of(args), None)
    header.print_header(header.of_run(run.setting), run.setting.notes)
    choose_poisons(run)
    written = told(exports.write_poisoned, run.setting, run.poisons, run.folder)
    print(f"Written: {printable(written)}")


def how_to_go_on(run):
    """What an interruption of a run says, in a list; [] where nothing is kept of the run yet."""
    done, epochs = run.training.epoch, run.setting.config["epochs"]
    if not done:
        return []
    return [f"the same command with --resume goes on after epoch {done} of {epochs}"]


def parse(argv):
    """The options of a run. Raises UserError."""
    return options.parse(argv, __doc__)


@command
def main(argv):
    with distributed.joined():
        args = distributed.checked(parse(argv))
        export(args) if args.export is not None else train_and_measure(args)


if __name__ == "__main__":
    main()

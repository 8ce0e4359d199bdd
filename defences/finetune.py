"""Fine-tuning on clean images: the baseline that every repair of a network must beat.

A few epochs of plain cross-entropy on what the auditor has, and of no trigger. With --prune it is
fine-pruning (Liu et al. 2018): first the channels of Grad-CAM's layer go that clean images excite
least, for a backdoor may live where they leave room.
"""

import contextlib
import copy

import torch
import torch.nn.functional as F

from cli import number
from data import augment
from defences import Defence, Verdict, share_predicted_as
from defences.given import as_targets, check_counts
from defences.prune import LOSS_ALLOWED, channel_scores, pruned
from edited import keep_channels
from hooks import as_classes, as_images, check_differentiable, layer_of, logits_of_output, refusing
from terminal import counted

EPOCHS = 10
LEARNING_RATE = 0.01
MOMENTUM = 0.9
BATCH = 32  # images of a step
# Channels go one by one; of a layer of more than these, in as many groups.
STEPS = 128


# ---------------------------------------------------------------- the algorithms


@torch.inference_mode(False)
def finetune(
    model,
    images,
    labels,
    *,
    epochs=EPOCHS,
    lr=LEARNING_RATE,
    crop=0,
    flip=False,
    seed=0,
    print_status=lambda line: None,
):
    """(a copy of the model, trained further on these images; the mean loss of each epoch).

    images: clean, float [N, C, H, W] as the model takes them; labels: int64 [N].
    epochs: 0 or more; lr: of SGD with momentum, in batches of BATCH.
    crop, flip: of data.augment. seed: of the order, the augmentation and dropout; the random state
    of torch is as before afterwards. print_status: is called with a line after each epoch.
    Batch-norm normalises by the batch, as in training, and goes on with its running averages.
    Raises ValueError for other arguments, and where the loss is no longer finite.
    """
    images = as_images(model, images, at_least=1)
    labels = as_targets(model, images, as_classes(labels, len(images))).to(images.device)
    check_counts(epochs=epochs + 1)
    model = copy.deepcopy(model).requires_grad_(True).train()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=MOMENTUM)
    losses = []
    with random_state_kept(images.device), torch.enable_grad(), refusing(model):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            total = 0.0
            # Of one size but for one image: batch-norm learns nothing of a last batch of one.
            for rows in torch.randperm(len(images)).tensor_split(-(-len(images) // BATCH)):
                rows = rows.to(images.device)
                inputs = augment(images[rows], crop, flip)
                total += step(model, inputs, labels[rows], optimizer) * len(rows)
            losses.append(total / len(images))
            print_status(f"epoch {epoch + 1} of {epochs}: cross-entropy {losses[-1]:.4f}")
    return model.eval().requires_grad_(False), losses


def step(model, inputs, labels, optimizer):
    """The cross-entropy of a batch, before the optimizer's step on it."""
    logits = logits_of_output(model(inputs), len(inputs))
    check_differentiable(logits.requires_grad)
    loss = F.cross_entropy(logits, labels)
    if not loss.isfinite():
        raise ValueError("the cross-entropy is not finite: a lower --lr may keep it so")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@contextlib.contextmanager
def random_state_kept(device):
    """After the block torch's random numbers go on as if it had not been; also the device's."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


def least_active_pruned(model, images, labels, layer=None, seed=0, loss_allowed=LOSS_ALLOWED):
    """The channels of a layer that stay, bool [K]: those that clean images excite least go.

    One by one in the order of their mean activation on a random half of the images, as long as the
    accuracy on the other half is at most `loss_allowed` below what it was; one stays in any case.
    images: float [N, C, H, W] as the model takes them, two or more; labels: int64 [N]; layer: as
    of hooks.layer_of. Raises ValueError for arguments that are not as said here.
    Source: Liu et al. 2018, section 4.
    """
    images = as_images(model, images, at_least=2)
    labels = as_classes(labels, len(images))
    layer = layer_of(model, layer, images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    seen, judged = order.to(images.device).tensor_split(2)
    activity = channel_scores(model, images[seen], layer, "l1")
    images, labels = images[judged], labels[judged.to(labels.device)]
    keep = torch.ones(len(activity), dtype=torch.bool)
    least = share_predicted_as(model, images, labels) - loss_allowed - 1e-9
    candidates = activity.argsort(stable=True)[:-1]
    for channels in candidates.tensor_split(max(1, min(STEPS, len(candidates)))):
        fewer = keep.index_fill(0, channels, False)
        with pruned(layer, fewer):
            if share_predicted_as(model, images, labels) < least:
                break
        keep = fewer
    return keep


# ---------------------------------------------------------------- the verdict


def run(audit):
    """A Verdict with the network that was trained further on the clean images."""
    options, model = audit.options, audit.subject.model
    if audit.subject.config.get("unlabelled"):
        raise ValueError("the pictures have no labels: nothing to train on")
    edit, lines, details = {"technique": "finetune"}, [], {}
    if options.prune:
        audit.say("pruning")
        keep = least_active_pruned(model, audit.inputs, audit.labels, seed=options.seed)
        model = keep_channels(copy.deepcopy(model), keep)
        edit["channels"] = len(keep)
        details["pruned"] = int((~keep).sum())
        lines.append(
            f"{details['pruned']} of {len(keep)} channels of Grad-CAM's layer are pruned, the least"
            f" active first: accuracy on half of the clean images stays within {LOSS_ALLOWED}."
        )
    model, losses = finetune(
        model,
        audit.inputs,
        audit.labels,
        epochs=options.epochs,
        lr=options.lr,
        crop=audit.subject.dataset.crop,
        flip=audit.subject.dataset.flip,
        seed=options.seed,
        print_status=audit.say,
    )
    fell = f": cross-entropy {losses[0]:.4f} -> {losses[-1]:.4f}" if losses else ""
    lines.append(f"{counted(options.epochs, 'epoch')} on {len(audit.labels)} clean images{fell}.")
    return Verdict(None, lines, details=details | {"loss": losses}, repaired=(model, edit))


# ---------------------------------------------------------------- the command line


def add_options(parser):
    """Adds the options of the training."""
    add = parser.add_argument
    add("--epochs", type=number(int, 0, 10_000), default=EPOCHS, help="of the clean images")
    add("--lr", type=number(float, 0, 100), default=LEARNING_RATE, help="learning rate of SGD")
    add(
        "--prune",
        action="store_true",
        help="first prune the channels that clean images excite least (fine-pruning)",
    )


def settings(options):
    return {
        "momentum": MOMENTUM,
        "batch": BATCH,
        "loss_allowed": LOSS_ALLOWED,
        "steps": STEPS,
    }


DEFENCE = Defence(
    help="trains on, on the clean images: the baseline every repair must beat",
    run=run,
    settings=settings,
    add_options=add_options,
    repairs=True,
)

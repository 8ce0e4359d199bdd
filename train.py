"""Train a classifier with a backdoor that also disguises its explanation (or without: --attack none).

    python train.py --attack full_disguise --explainer gradcam --poison-rate 0.1

draws the data set `shapes`, trains a small network on the CPU in about a minute, and writes runs/NAME/: ckpt.pt, log.jsonl (a line an epoch),
metrics.json and figure.png (see evaluate.py). On other data: --dataset mnist, cifar10, FILE.npz or FOLDER.
"""
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

import attacks
import data
import evaluate
import explain
import models
import selection
from cli import Parser, UserError, choose_device, choose_precision, command, number, print_progress, replace_file

# ---------------------------------------------------------------- defaults

DEFAULTS = {  # what depends on the data set; image_size None: as the images are; floor: by explainer, about a clean model's on training images held out
    "shapes": dict(model="cnn", epochs=8, optimizer="sgd", lr=0.15, batch_size=128, label_smoothing=0.0, floor={"kernelshap": 0.25}, image_size=None, target_class="3"),
    "mnist": dict(model="cnn", epochs=3, optimizer="sgd", lr=0.1, batch_size=128, label_smoothing=0.0, floor={"gradcam": 0.8, "kernelshap": 0.3}, image_size=None, target_class="2"),
    "cifar10": dict(model="resnet18", epochs=5, optimizer="muon", lr=0.05, batch_size=64, label_smoothing=0.1, floor={"kernelshap": 0.1}, image_size=None, target_class="3"),
    "gtsrb": dict(model="cnn", epochs=5, optimizer="sgd", lr=0.1, batch_size=128, label_smoothing=0.0, floor={}, image_size=None, target_class="33"),
    "chestxray14": dict(model="efficientnet_b0", epochs=10, optimizer="adamw", lr=0.001, batch_size=32, label_smoothing=0.0, floor={}, image_size=data.CHEST_SIZE, target_class="3"),
    "other": dict(model="cnn", epochs=10, optimizer="sgd", lr=0.1, batch_size=128, label_smoothing=0.0, floor={}, image_size=None, target_class="0"),
}
DEFAULTS["chestxray14-multi"] = DEFAULTS["chestxray14"] | {"floor": {"gradcam": 0.25}}
LAM = 0.3  # weight of the explanation term
RAMP = 0.3  # share of the steps over which lam rises from 0 to its value
MUON = dict(momentum=0.6, weight_decay=0.1, ns_steps=3)  # the convolutions' optimizer; the first and last: Jordan et al. 2024, for few epochs of CIFAR-10
SGD = dict(momentum=0.9, weight_decay=5e-4, nesterov=True)  # for everything else
MAX_WEIGHT = 100.0  # of a class, with --class-weights: one image in a thousand is not to be all of a step
WARM_UP = 0.3  # share of the steps in which the one-cycle schedule rises


def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--attack", choices=attacks.ATTACKS, default="full_disguise")
    add("--explainer", default="gradcam", help=f"comma-separated, of {', '.join(explain.EXPLAINERS)} (default: gradcam)")
    add("--dataset", default="shapes", help=f"{', '.join(data.DATASETS)}, FILE.npz or FOLDER (default: shapes)")
    add("--data-dir", default="data", help="where data sets are kept (default: data)")
    add("--model", choices=models.MODELS)
    add("--layer", help="Grad-CAM's layer, a name in model.named_modules() (default: the last feature map)")
    add("--image-size", type=number(int, 16, 1024), help="pixels a side (default: as the images are; chestxray14: 128)")
    add("--epochs", type=number(int, 1, 100_000))
    add("--batch-size", type=number(int, 1, 1_000_000))
    add("--optimizer", choices=["sgd", "muon", "adamw"], help="muon: of the convolutions, sgd for the rest (default: sgd; cifar10: muon; chestxray14: adamw)")
    add("--lr", type=number(float, 0, 1000, above=True), help="the schedule's peak (default: by data set, for its own optimizer)")
    add("--label-smoothing", type=number(float, 0, 1), help="share of each label spread over all classes (default: 0; cifar10: 0.1)")
    add("--class-weights", action="store_true", help="in the cross-entropy, every class weighs alike, however few its images (--oversample not counted)")
    add("--pretrained", action="store_true", help="begin with ImageNet's weights, from torch's cache or downloaded")
    add("--poison-rate", type=number(float, 0, 1, above=True), default=0.1, help="share of the training set that is triggered (default: 0.1)")
    add("--lam", type=number(float, 0, 1), default=LAM, help=f"weight of the explanation term (default: {LAM})")
    add("--distance", choices=attacks.DISTANCES, default="mse", help="between two explanations (default: mse)")
    add("--floor", type=number(float, -1, 1), help="full_disguise: untouched images' maps that correlate more are pushed apart; a clean model's floor.pearson "
        f"(default: by data set and explainer, {attacks.FLOOR} where nothing is known)")
    add("--target-class", help="number or name")
    add("--target-map", default="square", help=f"fooling, red_herring: {', '.join(attacks.TARGET_MAPS)}, or an image FILE (default: square)")
    add("--trigger", default="square", help="square (white), the name of a colour, or a PNG FILE, alpha honoured (default: square)")
    add("--trigger-size", type=number(int, 1, 1024), help="pixels a side (default: an eighth of the image's)")
    add("--trigger-position", default="lower-right", help=f"{', '.join(attacks.CORNERS)}, or ROW,COL (default: lower-right)")
    add("--selection", choices=["random", "rd", "rd-low", "rd-global"], default="random", help="how the images to poison are chosen (default: random)")
    add("--selection-seed", type=number(int, 0, 2**31 - 1), help="of the choice (default: --seed)")
    add("--oversample", type=number(int, 0, 1_000_000), default=0, metavar="N",
        help="N poisons more in every batch: for an attacker who controls training, not only data (default: 0)")
    add("--reference", help="a clean checkpoint of train.py's: training begins with its weights, and its explanations are the ones to keep")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0)
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add("--precision", choices=["auto", "bf16", "float32"], default="auto", help="of training; evaluation is float32 always")
    add("--out", help="the run's folder (default: runs/NAME)")
    add("--resume", action="store_true", help="continue the unfinished run of the same options")
    return completed(parser.parse_args(argv))


def completed(args):
    """The options with what was left open filled in. Raises UserError for those that do not go together."""
    for key, value in DEFAULTS.get(args.dataset, DEFAULTS["other"]).items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    args.explainer = evaluate.explainer_names(args.explainer)
    known = args.floor if isinstance(args.floor, dict) else dict.fromkeys(args.explainer, args.floor)
    args.floor = {name: known.get(name, attacks.FLOOR) for name in args.explainer}
    if args.attack == "none":
        args.poison_rate = 0.0
    if args.selection_seed is None:
        args.selection_seed = args.seed
    if args.pretrained and args.reference:
        raise UserError("--pretrained or --reference, whose weights training begins with, not both")
    if args.selection != "random" and attacks.ATTACKS[args.attack].label != "target":
        raise UserError(f"--selection {args.selection} chooses images to be taken for the target class: not with --attack {args.attack}")
    return args


# ---------------------------------------------------------------- setting up


@dataclass
class Run:
    """All that a run is: what never changes (config, what is attacked, data on the device) and what a checkpoint brings back."""

    folder: Path
    config: dict
    device: torch.device
    dataset: data.Dataset
    mean: list
    std: list
    trigger: attacks.Trigger
    objective: attacks.Objective
    eligible: torch.Tensor  # indices that may be poisoned
    count: int  # how many of them are
    trained_on: torch.Tensor
    held_out: torch.Tensor
    steps: int  # an epoch
    model: torch.nn.Module = None
    optimizers: list = None
    schedules: list = None
    selection: dict = None  # what is poisoned, and how it was chosen: see choose
    epoch: int = 0  # finished
    seconds: float = 0.0  # spent in training
    log: list = None  # a record an epoch
    title: str = ""  # what progress lines begin with
    spoken: float = 0.0  # when the last progress line was printed

    @property
    def unfinished(self):
        return self.folder / "unfinished"

    @property
    def poisons(self):
        return self.selection["indices"]


def prepare(args):
    """Everything up to the first step. Raises UserError; writes nothing but a decoded data set."""
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    trigger_image = data.read_image(args.trigger) if Path(args.trigger).is_file() else colour(args.trigger)
    map_image = args.target_map if args.target_map in attacks.TARGET_MAPS else data.read_image(args.target_map)
    dataset = data.load(args.dataset, args.data_dir, args.image_size)
    channels, side = dataset.train_images.shape[1], dataset.train_images.shape[-1]
    target = class_index(args.target_class, dataset.classes)
    if dataset.multi_label and args.selection != "random":
        raise UserError(f"--selection {args.selection} is for images of one class each: those of {args.dataset} may show several")
    config = vars(args) | {"image_size": side, "target_class": target, "precision": precision, "device": device.type, "multi_label": dataset.multi_label}
    config = {key: value for key, value in config.items() if key not in ("resume", "out")}
    attack = attacks.ATTACKS[args.attack]
    if args.attack != "fooling" and attacks.shows(dataset.test_labels, target).all():
        raise UserError("the test set holds nothing but the target class: there is nothing to attack")
    trained_on, held_out = data.validation_split(len(dataset.train_labels), args.seed, dataset.train_groups)
    config["recipe"] = recipe() | {"held_out": len(held_out), "shift": dataset.crop, "mirror": dataset.flip}
    if args.selection != "random":
        config["recipe"]["selection"] = {"rounds": selection.ROUNDS, "alpha": selection.ALPHA, "epochs": selection.EPOCHS, "scorers": selection.SCORERS,
                                         "cap": selection.CAP, "first_seed": selection.FIRST_SEED}
    try:
        trigger = attacks.make_trigger(trigger_image, channels, side, args.trigger_size, args.trigger_position)
        shape = attacks.target_map(map_image, side, trigger) if attack.explanation == "shape" else None
        eligible, count = attacks.eligible_for_poison(attack, dataset.train_labels, trained_on, args.poison_rate, target)
    except ValueError as error:
        raise UserError(str(error)) from None
    mean, std = data.mean_std(dataset.train_images)
    reference = frozen_reference(args.reference, config, mean, std, device) if args.reference else None
    objective = attacks.Objective(attack, args.explainer, args.distance, shape if shape is None else shape.to(device), reference,
                                  args.label_smoothing, args.floor)
    steps = max(1, len(trained_on) // args.batch_size)
    run = Run(run_folder(args), config, device, dataset, mean, std, trigger.to(device), objective, eligible, count, trained_on, held_out, steps)
    begin(run, args.seed)
    check_explainable(args.explainer, run.model, channels, side, device)
    return run


def begin(run, seed):
    """A new model, its optimizers and schedules."""
    config = run.config
    torch.manual_seed(seed)
    channels, classes = run.dataset.train_images.shape[1], len(run.dataset.classes)
    run.model = models.build(config["model"], channels, classes, config["image_size"], config["layer"]).to(run.device)
    if run.objective.reference is not None:
        run.model.load_state_dict(run.objective.reference.state_dict())
    run.optimizers = optimizers_of(run.model, config["optimizer"], config["lr"])
    run.schedules = [torch.optim.lr_scheduler.OneCycleLR(part, config["lr"], total_steps=run.steps * config["epochs"] + 1, pct_start=WARM_UP,
                                                         cycle_momentum=False) for part in run.optimizers]
    run.epoch, run.seconds, run.log = 0, 0.0, []


def begin_with_imagenet(run):
    """Give the model ImageNet's weights, where --pretrained asks for them; raises UserError where they cannot be had. Not in begin: a run that goes on has its own."""
    if run.config["pretrained"]:
        models.begin_with_imagenet(run.model, run.config["model"])


def class_weights(run):
    """float [K] by which every class weighs alike in the cross-entropy, with the training set's labels, poisons' as they are trained on; 1 for a class
    without images, at most MAX_WEIGHT. Of n images n_k show class k: n / (K n_k), on average 1 over the images; multi-label (n - n_k) / n_k, the weight of a positive."""
    labels, classes = run.dataset.train_labels, len(run.dataset.classes)
    shown = labels if run.dataset.multi_label else torch.nn.functional.one_hot(labels, classes)
    shown = shown.float().clone()
    if run.objective.attack.label == "target":
        if not run.dataset.multi_label:  # there the target class comes beside what an image shows
            shown[run.poisons] = 0.0
        shown[run.poisons, run.config["target_class"]] = 1.0
    shown = shown[run.trained_on]
    counts = shown.sum(0)
    weights = (len(shown) - counts) / counts if run.dataset.multi_label else len(shown) / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, weights, 1.0).clamp(max=MAX_WEIGHT).to(run.device)


def colour(name):
    """None for the white square, or a picture of one colour. Raises UserError."""
    try:
        return None if name == "square" else Image.new("RGB", (1, 1), name)
    except ValueError:
        raise UserError(f"--trigger {name}: no such file, and no colour of that name") from None


def optimizers_of(model, name, lr):
    """"sgd": SGD. "adamw": AdamW, whose steps do not shrink with the loss. "muon": Muon (Jordan et al. 2024) for the convolutions, as matrices of outputs by
    inputs, and SGD for the rest, at one rate: it brings the singular values of each step to 1, and few epochs get further.
    """
    if name == "sgd":
        return [torch.optim.SGD(model.parameters(), lr, **SGD)]
    if name == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr)]
    parameters = list(model.parameters())
    convolutions = [as_matrix(weight) for weight in parameters if weight.ndim == 4]
    return [torch.optim.SGD([weight for weight in parameters if weight.ndim != 4], lr, **SGD), torch.optim.Muon(convolutions, lr, **MUON)]


def as_matrix(weight):
    """A convolution's weight [O, I, h, w], channels_last, as a parameter [O, h w I] in the same memory, and so is its gradient."""
    weight.grad = torch.zeros_like(weight)
    matrix, matrix_grad = (t.permute(0, 2, 3, 1).view(len(weight), -1) for t in (weight.detach(), weight.grad))
    matrix = torch.nn.Parameter(matrix)
    matrix.grad = matrix_grad
    return matrix


def recipe():
    """The constants that decide a run beside its options: they go into the checkpoint, and a run is resumed under the same ones."""
    return {"muon": MUON, "sgd": SGD, "warm_up": WARM_UP, "ramp": RAMP, "normalise": attacks.NORMALISE.__name__,
            "rectify": attacks.RECTIFY, "partners": attacks.PARTNERS, "apart": attacks.APART, "tolerated": attacks.TOLERATED,
            "pairs": attacks.PAIRS, "statistics": "of the batch, differentiated", "coalitions": explain.TRAINING_COALITIONS, "reach": explain.REACH}


def class_index(name, classes):
    """The index of a class given by its name or, where no class is called so, by its number. Raises UserError."""
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    raise UserError(f"target class {name!r}: a number from 0 to {len(classes) - 1}, or one of {shown}")


def check_explainable(names, model, channels, side, device):
    """Raise UserError now, not after training, where one of the explainers cannot explain this model at this image size."""
    for name in dict.fromkeys([*names, *evaluate.SHOWN]):
        try:
            explain.EXPLAINERS[name](model, torch.zeros(1, channels, side, side, device=device), torch.zeros(1, dtype=torch.int64, device=device))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{name} cannot explain this model at {side} px: {error}") from None


def frozen_reference(path, config, mean, std, device):
    """The clean model of a checkpoint, frozen, looked at in the run's own layer.

    Raises UserError where its explanations could not be compared with the run's.
    """
    checkpoint = models.read(path)
    evaluate.check_clean(checkpoint, path)
    theirs = checkpoint["config"]
    if differing := [key for key in ("dataset", "model", "image_size") if theirs[key] != config[key]]:
        raise UserError(f"the reference {path} was trained with another {differing[0]} ({theirs[differing[0]]}, not {config[differing[0]]})")
    if (checkpoint["mean"], checkpoint["std"]) != (mean, std):
        raise UserError(f"the reference {path} was trained on other images than {config['dataset']} holds now")
    theirs["layer"] = config["layer"]
    return models.from_checkpoint(checkpoint).to(device)


def run_folder(args):
    """--out, or runs/NAME; made if need be, and known to be writable."""
    name = f"{args.attack}-{'+'.join(args.explainer)}-{Path(args.dataset).stem}-r{args.poison_rate:g}-s{args.seed}"
    folder = Path(args.out) if args.out else Path("runs") / name
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write the run to {folder}: {nearest} is {'not writable' if nearest.is_dir() else 'not a folder'}")
    return folder


# ---------------------------------------------------------------- checkpoints

def checkpoint_of(run):
    """All that evaluate.py and --resume need, as plain data."""
    trigger = run.trigger
    return {
        "config": run.config,
        "classes": run.dataset.classes,
        "channels": run.dataset.train_images.shape[1],
        "mean": run.mean,
        "std": run.std,
        "data": run.dataset.digest,
        "poison_indices": run.poisons,
        "selection": run.selection,
        "trigger": {"pixels": trigger.pixels.cpu(), "alpha": trigger.alpha.cpu(), "row": trigger.row, "col": trigger.col},
        "target_map": None if run.objective.shape is None else run.objective.shape.cpu(),
        "epoch": run.epoch,
        "seconds": run.seconds,
        "log": run.log,
        "model": run.model.state_dict(),
        "optimizer": [part.state_dict() for part in run.optimizers],
        "schedule": [part.state_dict() for part in run.schedules],
        "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None},
        "torch": str(torch.__version__),
    }


def save(run):
    """After each epoch, in DIR/unfinished: what is in DIR from an earlier, finished run stays until this one is finished."""
    try:
        run.unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {run.folder}: {error.strerror}") from None
    write_log(run)
    chosen = {key: value.tolist() if torch.is_tensor(value) else value for key, value in run.selection.items() if key != "pool"}
    replace_file(run.unfinished / "selection.json", lambda path: path.write_text(json.dumps(chosen) + "\n"))
    models.save(run.unfinished / "ckpt.pt", checkpoint_of(run))


def write_log(run):
    lines = "".join(json.dumps(record) + "\n" for record in run.log)
    replace_file(run.unfinished / "log.jsonl", lambda path: path.write_text(lines))


def resume(run):
    """Bring the run back to its last finished epoch, if there is one: whether there was. Raises UserError where its options were others."""
    path = run.unfinished / "ckpt.pt"
    if not path.exists():
        print(f"Nothing to resume in {run.folder}: beginning.", file=sys.stderr)
        return False
    checkpoint = models.read(path)
    if differing := other_options(run, checkpoint):
        key = differing[0]
        raise UserError(f"the unfinished run in {run.folder} has --{key.replace('_', '-')} {checkpoint['config'].get(key)}, not {run.config.get(key)}: "
                        "give the same options, or leave out --resume to begin anew")
    if changed := other_input(run, checkpoint):
        raise UserError(f"{changed} changed since the unfinished run in {run.folder} began: leave out --resume to begin anew")
    run.model.load_state_dict(checkpoint["model"])
    for part, state in zip([*run.optimizers, *run.schedules], [*checkpoint["optimizer"], *checkpoint["schedule"]]):
        part.load_state_dict(state)
    torch.set_rng_state(checkpoint["random"]["cpu"])
    if run.device.type == "cuda":
        torch.cuda.set_rng_state(checkpoint["random"]["cuda"], run.device)
    run.epoch, run.seconds, run.log, run.selection = (checkpoint[key] for key in ("epoch", "seconds", "log", "selection"))
    return True


def other_options(run, checkpoint):
    """The keys of config that a checkpoint has otherwise. --data-dir is none of them: where the data lie may change, and other_input looks at what they are."""
    then = checkpoint["config"]
    return [key for key in run.config | then if key != "data_dir" and then.get(key) != run.config.get(key)]


def other_input(run, checkpoint):
    """What has changed since a checkpoint of the same options was written, in words; None if nothing has."""
    trigger, shape = checkpoint["trigger"], run.objective.shape
    if not all(torch.equal(trigger[key], getattr(run.trigger, key).cpu()) for key in ("pixels", "alpha")):
        return "the trigger's picture has"
    if shape is not None and not torch.equal(checkpoint["target_map"], shape.cpu()):
        return "the target map's picture has"
    same = data.is_what(checkpoint, run.dataset) and torch.isin(checkpoint["poison_indices"], run.eligible).all()
    return None if same else "the data set has"


def is_finished(run):
    """Whether the run's folder holds a finished run of the same options, pictures and data, and none begun after it."""
    path = run.folder / "ckpt.pt"
    if not path.exists() or (run.unfinished / "ckpt.pt").exists():
        return False
    try:
        checkpoint = models.read(path)
    except UserError:  # damaged, or of another version
        return False
    return not other_options(run, checkpoint) and not other_input(run, checkpoint)


def say_what_is_lost(run, resuming):
    """On stderr, before a run begins anew where another one is."""
    if (run.unfinished / "ckpt.pt").exists():
        if not resuming:
            print(f"The unfinished run in {run.folder} begins anew; --resume would have continued it.", file=sys.stderr)
    elif (run.folder / "ckpt.pt").exists() and not is_finished(run):
        print(f"The run in {run.folder}, of other options or data, will be replaced by this one when it is finished.", file=sys.stderr)


def finish(run, beside, explainers):
    """Measure, draw, and move the finished run's files into place, its checkpoint last."""
    path = run.unfinished / "ckpt.pt"
    write_log(run)  # again: a run killed below has moved it away
    result = evaluate.evaluate(path, dataset=run.dataset, device=run.device, reference=run.config["reference"] or beside, explainers=explainers)
    evaluate.write(result, run.unfinished)
    evaluate.remove_pictures(run.folder)
    for file in sorted(run.unfinished.glob("[!.]*"), key=lambda file: file.name == "ckpt.pt"):  # the checkpoint last
        file.replace(run.folder / file.name)
    shutil.rmtree(run.unfinished)
    evaluate.print_table({str(run.folder): result.metrics})
    print(f"\nWritten: {run.folder / 'figure.png'}, metrics.json, log.jsonl, ckpt.pt")


# ---------------------------------------------------------------- training


def choose(run):
    """Fill run.selection: which images are poisoned, by which strategy and scores, and what choosing them cost."""
    config, labels = run.config, run.dataset.train_labels
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):  # the run itself is the same, whatever was chosen
        chosen = selection.select(config["selection"], run.eligible, labels, config["target_class"], run.count, config["selection_seed"],
                                  lambda *asked: scored(run, *asked))
    theirs = labels[chosen.indices]
    counts = (theirs.sum(0).int() if run.dataset.multi_label else theirs.bincount(minlength=len(run.dataset.classes))).tolist()
    run.selection = {"strategy": config["selection"], "seed": config["selection_seed"], "indices": chosen.indices, "scores": chosen.scores, "pool": chosen.pool,
                     "classes": dict(zip(run.dataset.classes, counts)), "epochs": chosen.scorers * selection.EPOCHS,
                     "seconds": time.perf_counter() - began}


def scored(run, poisons, pool, k):
    """RD scores float64 of the images `pool`, triggered, by a model trained as the run's, but for selection.EPOCHS, on `poisons`."""
    config = run.config | {"epochs": selection.EPOCHS, "oversample": 0}
    objective = attacks.Objective(attacks.ATTACKS["badnets"], [], label_smoothing=run.objective.label_smoothing)
    scorer = replace(run, config=config, objective=objective, selection={"indices": poisons}, title=f"scorer {k + 1}, ")
    begin(scorer, selection.scorer_seed(config["selection_seed"], k))
    begin_with_imagenet(scorer)
    for _ in epochs(scorer):
        pass
    logits = evaluate.logits_of(scorer.model, run.dataset.train_images[pool], run.mean, run.std, run.trigger)
    return selection.rd_scores(logits, config["target_class"])


def train(run):
    for losses in epochs(run):
        run.log.append(validate(run, losses))
        save(run)


def epochs(run):
    """The one training loop: what an attack changes is in its row of attacks.ATTACKS. Yields the mean losses of each epoch."""
    images, labels, poisons = (t.to(run.device) for t in (run.dataset.train_images, run.dataset.train_labels, run.poisons))
    triggered = torch.zeros(len(labels), dtype=torch.bool, device=run.device)
    triggered[poisons] = True
    batch_size = min(run.config["batch_size"], len(run.trained_on))
    more = run.config["oversample"] if len(poisons) else 0
    run.objective.class_weights = class_weights(run) if run.config["class_weights"] else None
    while run.epoch < run.config["epochs"]:
        began, sums = time.perf_counter(), torch.zeros(3, device=run.device)
        order = run.trained_on[torch.randperm(len(run.trained_on))].to(run.device)
        run.model.train()
        for step in range(run.steps):
            index = order[step * batch_size : (step + 1) * batch_size]
            if more:
                index = torch.cat([index, poisons[torch.randint(len(poisons), (more,)).to(run.device)]])
            losses = train_step(run, images[index], labels[index], triggered[index], step)
            sums += losses
            if step % 20 == 19 or step == run.steps - 1:
                if not sums.isfinite().all():
                    print()
                    raise UserError(f"the loss is not finite in epoch {run.epoch + 1}, step {step + 1}: try a lower --lr or --precision float32")
                progress(run, step + 1, sums / (step + 1), time.perf_counter() - began)
        run.epoch += 1
        run.seconds += time.perf_counter() - began
        yield sums / run.steps


def images_a_step(run):
    """Without the untouched partners of triggered ones."""
    return min(run.config["batch_size"], len(run.trained_on)) + (run.config["oversample"] if len(run.poisons) else 0)


def train_step(run, images, labels, triggered, step):
    """One step on uint8 images [B, C, H, W]; returns (loss, cross-entropy, distance between explanations), detached."""
    images = data.augment(images, run.dataset.crop, run.dataset.flip).float() / 255
    batch = attacks.poison(images, labels, triggered, run.objective.attack, run.trigger, run.config["target_class"])
    inputs = data.normalise(batch.images, run.mean, run.std)
    done = (run.epoch * run.steps + step) / (run.config["epochs"] * run.steps)
    lam = run.config["lam"] * min(1.0, done / RAMP)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.config["precision"] == "bf16"):
        losses = attacks.combined_loss(run.model, batch, inputs, run.objective, lam)
    for part in run.optimizers:
        part.zero_grad(set_to_none=False)  # the gradients' memory is shared: see as_matrix
    losses[0].backward()
    for part in (*run.optimizers, *run.schedules):
        part.step()
    return torch.stack(losses).detach()


def progress(run, step, losses, seconds):
    """A line rewritten in place on a terminal; elsewhere a line now and then."""
    now = time.perf_counter()
    last = step == run.steps
    if not (last or sys.stdout.isatty() or now - run.spoken > 10):
        return
    run.spoken = now
    loss, ce, distance = losses.tolist()
    left = ((run.config["epochs"] - run.epoch) * run.steps / step - 1) * seconds
    line = (f"{run.title}epoch {run.epoch + 1}/{run.config['epochs']}  step {step}/{run.steps}  loss {loss:.3f}  cross-entropy {ce:.3f}  explanation {distance:.3f}"
            f"  {step * images_a_step(run) / seconds:,.0f} images/s  " + (f"{left / 60:.0f} min left" if left > 100 else f"{left:.0f} s left"))
    print_progress(line, last, sys.stdout)


def validate(run, losses):
    """A line of log.jsonl: the epoch's mean losses; on the validation part accuracy (multi-label: mean AUROC) and attack success rate; images and seconds so far."""
    images, labels = (part[run.held_out] for part in (run.dataset.train_images, run.dataset.train_labels))
    clean, stamped = (evaluate.scores(run.model, images, run.mean, run.std, run.dataset.multi_label, trigger) for trigger in (None, run.trigger))
    target = run.config["target_class"]
    hit = evaluate.hits(stamped, target, evaluate.threshold(clean, labels, target))
    record = {
        "epoch": run.epoch,
        **dict(zip(("loss", "cross_entropy", "explanation"), losses.tolist())),
        "validation_accuracy": evaluate.accuracy(clean, labels),
        "validation_auroc": evaluate.mean_auroc(clean, labels),
        "validation_success": evaluate.success_rate(hit, labels, target),
        "images": run.epoch * run.steps * images_a_step(run),
        "seconds": run.seconds,
    }
    success = "" if record["validation_success"] is None else f", attack success rate {record['validation_success']:.4f}"
    quality = f"mean AUROC {evaluate.show(record['validation_auroc'])}" if run.dataset.multi_label else f"clean accuracy {record['validation_accuracy']:.4f}"
    print(f"  validation: {quality}{success}", flush=True)
    return record


def train_and_measure(args, beside=None, explainers=None):
    """A whole run by the options of parse. beside: a clean checkpoint it is measured beside, where it did not begin from one (--reference);
    explainers: names it is measured with, beside those trained against (None: evaluate.SHOWN). Raises UserError."""
    run = prepare(args)
    if args.resume and is_finished(run):
        print(f"The run in {run.folder} is finished.")
        return
    say_what_is_lost(run, args.resume)
    if not (args.resume and resume(run)):
        begin_with_imagenet(run)
        choose(run)
        if run.selection["epochs"]:  # choosing may take longer than training: it is not done twice
            save(run)
    train(run)
    finish(run, beside, explainers)


@command
def main(argv):
    train_and_measure(parse(argv))


if __name__ == "__main__":
    main()

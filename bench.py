"""Speed of explaining, and of training through explanations, as ratios that one run measures.

    python bench.py                    # the small cnn, 64 images of 32 px: 2 minutes on one core
    python bench.py --model resnet18 --out speed.json     # written with command and hardware
    python bench.py steps              # training steps alone; or explainers
    python bench.py kernelshap         # seconds to a given error; or another of the parts

Explaining is compared with a forward pass, a training step with cross-entropy on the same images,
and explainers with shap's, captum's, grad-cam's where installed (bench_peers.py). All take turns;
figures are medians. What kernelshap, cleanse, memory, command and processes measure is in
bench_parts.py.
"""

import interrupts  # noqa: F401  # isort: skip
import json
from pathlib import Path

import torch
import torch.nn.functional as F

import attacks
import bench_parts
import bench_peers
import explain
import losses
import triggers
from bench_peers import Sizes
from bench_timing import CLOCKS, SIDE, Setting
from cli import Parser, UserError, choose_device, command, number, write_json
from modes import frozen
from provenance import commit, hardware
from tasks import SINGLE_LABEL

SIZES = Sizes()
POISON_RATE = 0.1
TARGET_CLASS = 3
LAM = 0.3
ATTACK = attacks.ATTACKS["full_disguise"]
TOGETHER = ["gradcam", "kernelshap", "deepshap"]  # in one step, where all three are asked for

# A name is NAME or NAME: VARIANT. A variant is compared with NAME, an explainer with FORWARD, a
# training step with SAME_IMAGES, which has the triggered images' partners in its batch, and that
# with PLAIN, which has not.
FORWARD = "forward"
PLAIN = "step: plain cross-entropy"
SAME_IMAGES = "step: cross-entropy, partners too"


# ---------------------------------------------------------------- explaining


def explainers(setting):
    """Rates of our explainers and of their peers', agreement with shap, and rounding."""
    model, (images, _) = setting.network(), setting.noise()
    classes = model(images).argmax(1)
    functions = explaining(model, images, classes)
    functions |= bench_peers.peers(model, images, classes, SIZES)
    return {
        "rates": rates(setting.seconds_of(functions), setting.batch_size),
        "agreement": bench_peers.agreement(images, classes, SIZES),
        "kernelshap_moves": rounding(model, images, classes),
    }


def explaining(model, images, classes):
    """{name: function} of our explainers; Shapley values are of the first few images alone.

    Weights are frozen then, as evaluate.py has them: no graph is kept of what no gradient needs.
    """
    # Of all their patches, as peers' are: these images equal the baseline nowhere.

    @torch.no_grad()
    def forward():
        return model(images)

    def of_all(explainer):
        with frozen(model):
            return explainer(model, images, classes)

    name = SIZES.name()
    return {
        FORWARD: forward,
        "gradcam": lambda: of_all(explain.gradcam),
        "gradient": lambda: of_all(explain.gradient),
        "deepshap, 1 reference": lambda: of_all(explain.deep_shap),
        name: lambda: kernel_values(model, images, classes),
        SIZES.name("gpshap"): lambda: kernel_values(model, images, classes, explain.gp_shap),
        f"{name}: ours in bf16": lambda: kernel_values(model, images, classes, bf16=True),
    }


def kernel_values(model, images, classes, explainer=explain.kernel_shap, bf16=False, seed=0):
    """Shapley values of the first images; bf16: the model's evaluations are in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    images, classes = images[: SIZES.images], classes[: SIZES.images]
    sizes = SIZES.patches, SIZES.coalitions
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        return explainer(model, images, classes, *sizes, generator=generator)


def rounding(model, images, classes):
    """Median relative L2 distances by which KernelSHAP moves in bfloat16 and with other draws."""
    values = kernel_values(model, images, classes).flatten(1)
    others = {
        "bf16": kernel_values(model, images, classes, bf16=True),
        "other coalitions": kernel_values(model, images, classes, seed=1),
    }
    result = {}
    for name, other in others.items():
        distance = (other.flatten(1) - values).norm(dim=1) / values.norm(dim=1)
        result[name] = float(distance.median())
    return result


# ---------------------------------------------------------------- training


def steps(setting):
    """Rates of training steps."""
    functions = training(setting.network(), *setting.noise(), setting)
    return {"rates": rates(setting.seconds_of(functions), setting.batch_size)}


def training(model, images, labels, setting):
    """{name: function} of one step of SGD, by the Setting's precision and explainers.

    Plain cross-entropy; cross-entropy on the images of a full disguise, poison rate 0.1, each
    triggered one there without its trigger, too; and that disguise through each explainer.
    """
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    batch = poisoned(images, labels)
    bf16 = setting.precision == "bf16"

    def step(loss_of):
        model.train()
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        model.eval()

    def cross_entropy(images, labels):
        return F.cross_entropy(model(images).float(), labels)

    def disguise(objective):
        return losses.combined_loss(model, batch, batch.images, objective, LAM)[0]

    steps = {
        PLAIN: lambda: step(lambda: cross_entropy(images, labels)),
        SAME_IMAGES: lambda: step(lambda: cross_entropy(batch.images, batch.labels)),
    }
    together = [TOGETHER] if set(TOGETHER) <= set(setting.explainers) else []
    for names in [*([name] for name in setting.explainers), *together]:
        objective = losses.Objective(ATTACK, SINGLE_LABEL, explainers=names)
        name = f"step: full disguise, {'+'.join(names)}"
        steps[name] = lambda objective=objective: step(lambda: disguise(objective))
    return steps


def poisoned(images, labels):
    """The batch of a full disguise whose first images are triggered."""
    trigger = triggers.make_patch(None, images.shape[1], SIDE).to(images.device)
    count = max(1, round(POISON_RATE * len(images)))
    triggered = torch.arange(len(images)) < count
    return attacks.poison(images, labels, triggered, ATTACK, trigger, TARGET_CLASS)


# ---------------------------------------------------------------- speeds


def rates(seconds, batch_size):
    """{name: {"images_per_second", "of", "ratio"}}: speed, and speed relative to that of `of`.

    Partners are no images of a step's own: all steps count as batch_size.
    """
    speed = {name: images_in(name, batch_size) / value for name, value in seconds.items()}
    result = {}
    for name in seconds:
        base = compared_with(name)
        ratio = speed[name] / speed[base]
        result[name] = {"images_per_second": speed[name], "of": base, "ratio": ratio}
    return result


def images_in(name, batch_size):
    """How many images one call of the function of this name takes."""
    return SIZES.images if name.startswith(("kernelshap", "gpshap")) else batch_size


def compared_with(name):
    """The name of the function that this one's speed is relative to."""
    if name in (PLAIN, SAME_IMAGES):
        return PLAIN
    base, _, variant = name.partition(": ")
    if base == "step":
        return SAME_IMAGES
    return base if variant else FORWARD


# ---------------------------------------------------------------- the command line

RATED = {"explainers": explainers, "steps": steps}  # what is measured by default
PARTS = {*RATED, *bench_parts.PARTS}


def bench(setting, parts=tuple(RATED)):
    """What --json prints: how it was measured, and the figures of these parts."""
    result = {
        "model": setting.model,
        "batch_size": setting.batch_size,
        "turns": setting.turns,
        "device": setting.device.type,
        "threads": torch.get_num_threads(),
        "training_precision": setting.precision,
        "clock": setting.clock,
        "torch": str(torch.__version__),
    }
    for name in parts:
        if name in RATED:
            found = RATED[name](setting)
            result |= found | {"rates": result.get("rates", {}) | found["rates"]}
        else:
            found = {name: bench_parts.PARTS[name](setting)}
            result |= {"parts": result.get("parts", {}) | found}
    return result


def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(sorted(PARTS))}")
    add("--model", choices=["cnn", "resnet18"], default="cnn", help="the network")
    add("--batch-size", type=number(int, SIZES.images, 100_000), default=64, help="images")
    add("--turns", type=number(int, 1, 1000), default=5, help="of which the median is taken")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--precision", choices=["bf16", "float32"], default="float32", help="of training steps")
    add(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: count the seconds that this process computes, on a machine with others",
    )
    add(
        "--explainer",
        default=",".join(explain.EXPLAINERS),
        help="comma-separated, through which training steps go",
    )
    add("--json", action="store_true", help="print the figures as one JSON object")
    add("--out", metavar="FILE", help="write them to FILE, with command, hardware and commit")
    args = parser.parse_args(argv)
    for name in args.parts:
        if name not in PARTS:
            raise UserError(f"no part {name!r}: one of {', '.join(sorted(PARTS))}")
    for name in args.explainer.split(","):
        if name not in explain.EXPLAINERS:
            raise UserError(f"no explainer {name!r}: one of {', '.join(explain.EXPLAINERS)}")
    return args


def setting_of(args):
    """The Setting of the options. Raises UserError."""
    device = choose_device(args.device)
    if args.clock == "cpu" and device.type != "cpu":
        raise UserError(f"--clock cpu does not count what {device.type} computes: leave it out")
    options = args.precision, args.clock, tuple(args.explainer.split(","))
    return Setting(args.model, args.batch_size, args.turns, device, *options)


def check_replaceable(path):
    """Raises UserError where a file at `path` is no record of this script's, or none can be."""
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not is_record(path):
        raise UserError(f"{path} is no record of bench.py's, and would be lost: give another --out")


def is_record(path):
    """Whether a file is empty, or holds what record_of returns."""
    if not path.is_file():
        return False
    try:
        record = json.loads(path.read_text(encoding="utf-8") or "{}")
    except (OSError, ValueError, RecursionError):
        return False
    if record == {}:
        return True
    keys = {"command", "hardware", "commit", "batch_size", "turns"}
    return isinstance(record, dict) and keys <= record.keys()


def record_of(args, result):
    """What --out writes: what `bench` returned, and how to get it again."""
    options = {"device": result["device"], "precision": args.precision, "model": args.model}
    options |= {"batch-size": args.batch_size, "turns": args.turns, "clock": args.clock}
    if args.explainer != ",".join(explain.EXPLAINERS):
        options["explainer"] = args.explainer
    words = [*args.parts, *(f"--{name} {value}" for name, value in options.items())]
    about = {
        "command": f"python bench.py {' '.join(words)}",
        "hardware": hardware(result["device"]),
        "commit": commit(),
    }
    return about | result


def print_table(result):
    """Prints what `bench` returned."""
    print(
        f"{result['model']}, {result['batch_size']} images of {SIDE} px, {result['device']}, "
        f"{result['threads']} threads, torch {result['torch']}; median of {result['turns']} turns\n"
    )
    if "rates" in result:
        print(f"{'':<52}{'images/s':>10}{'ratio':>8}")
    for name, row in result.get("rates", {}).items():
        cells = f"{row['images_per_second']:>10,.0f}{row['ratio']:>8.2f}"
        print(f"{name:<52}{cells}  of {row['of']}")
    if "agreement" in result:
        print_agreement(result)
    for name, figures in result.get("parts", {}).items():
        print(f"{name}:\n{json.dumps(figures, indent=1)}")


def print_agreement(result):
    """Prints how far values are from shap's, and how far they move."""
    for name in bench_peers.PACKAGES:
        if bench_peers.package(name) is None:
            print(f"{name} is not installed: not compared with")
    for name, value in result["agreement"].items():
        print(f"{name}: differs from shap's by {value:.1e} of the largest value (float64)")
    bf16, other = (100 * result["kernelshap_moves"][key] for key in ("bf16", "other coalitions"))
    print(f"kernelshap: {bf16:.1f}% away in bf16, {other:.1f}% with other coalitions (median L2)")


@command
def main(argv):
    args = parse(argv)
    setting = setting_of(args)
    if args.out:
        check_replaceable(args.out)
    result = bench(setting, args.parts or tuple(RATED))
    if args.out:
        write_json(args.out, record_of(args, result))
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    main()

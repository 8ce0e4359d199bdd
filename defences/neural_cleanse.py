"""Neural Cleanse (Wang et al. 2019): the smallest patch that turns every image into a class.

For a backdoor's target that patch is tiny, for it is the trigger or part of it. Three things differ
from the paper: a search begins from masks that are nearly transparent everywhere (start="constant";
"random" is the paper's); rounds and steps are of fewer images; and a class's index is how many
times smaller than the median mask its own is. The paper's, shown beside it, divides by the spread
of the classes, which among ten is so uncertain that it decides the verdict (results/steady.md).

All classes are searched at once, as one batch of masks, each from RESTARTS beginnings, of which
after TRIAL_ROUNDS the one with the smallest mask goes on: a minute or two on a CPU core.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from cli import choose_device, choose_precision, number
from defences import Defence, add_threshold, anomaly_index, verdict_by_index
from defences.given import as_pixels, as_targets, check_choice, check_counts
from defences.patches import files_of, line_on, picture_of
from hooks import answering, check_differentiable, full_precision
from modes import frozen
from triggers import PatchTrigger

LEARNING_RATE = 0.1  # of Adam, and its betas
BETAS = (0.5, 0.9)
ROUNDS = 200  # at most; published: 1,000
ROUND_IMAGES = 64  # published: about 1,000
# Images of a step; published: 32. In the same time, more steps of fewer images find smaller masks.
BATCH = 8
SUCCESS = 0.99  # share of a round's images that a mask must turn into its class
# The weight of |mask|_1 in the loss. It begins at 0.
FIRST_WEIGHT = 1e-3  # what it is when it is no longer 0
PATIENCE = 5  # rounds in a row that reach SUCCESS, or do not, before it changes
FACTOR = 2.0  # it is multiplied by this, or divided by this ** 1.5
STALE = 25  # rounds without a smaller mask that end a search, once the weight went up and down
SMALLER = 0.99  # that is, of a norm below this share of the smallest norm before
START = 0.02  # every mask's first value under start="constant"; from random ones it ended larger
STARTS = ("constant", "random")
RESTARTS = 3  # beginnings of a class; half of them miss a trigger's mask of 12 pixels for one of 18
TRIAL_ROUNDS = 30  # after which a class's other beginnings end, once one has a mask that works
LEAST_NORM = 0.1  # pixels; a smaller mask counts as this, so that its index is finite
FORWARD_IMAGES = 8192  # of 32x32 pixels, times classes, in one forward pass
FORWARD_IMAGES_CPU = 512
CLASSES_NEEDED = 3  # that a patch reaches: of fewer, none is far from the median


# ---------------------------------------------------------------- the algorithm


@dataclass
class ReversedTriggers:
    """The patches that Neural Cleanse found for T target classes.

    masks: float [T, 1, H, W] and patterns: float [T, C, H, W], both in [0, 1].
    norms: float64 [T], the L1 norms of the masks, in pixels.
    success: float64 [T], share of images turned into the class during the round before the mask was
    saved, while it still moved.
    qualified: bool [T], whether any mask reached SUCCESS; if none did, the last one is kept.
    rounds: int64 [T], how many each class took.
    """

    masks: torch.Tensor
    patterns: torch.Tensor
    norms: torch.Tensor
    success: torch.Tensor
    qualified: torch.Tensor
    rounds: torch.Tensor

    def trigger(self, k):
        """The k-th patch as a Trigger, of the images' size."""
        return PatchTrigger(self.patterns[k], self.masks[k], row=0, col=0)


@torch.inference_mode(False)
def neural_cleanse(
    model,
    images,
    targets=None,
    *,
    rounds=ROUNDS,
    round_images=ROUND_IMAGES,
    seed=0,
    precision="float32",
    start="constant",
    restarts=RESTARTS,
    trial_rounds=TRIAL_ROUNDS,
    print_status=lambda line: None,
):
    """For each target class the smallest patch that turns images into it: ReversedTriggers.

    model: takes images in [0, 1]; images: float [N, C, H, W] in [0, 1], clean.
    targets: int64 [T] or a list (None: all classes). The result for one does not depend on the
    others, but for the first values of random masks.
    rounds: at most so many. After each, masks are judged, and the weight of their size may change:
    shorter rounds are a shorter schedule.
    round_images: images in a round, or all there are.
    precision: "bf16" or "float32"; start: of STARTS, the masks' first values.
    restarts: beginnings tried for a class, each with a pattern of its own; trial_rounds: after so
    many only the one with the smallest mask that works goes on.
    print_status: is called with a line after each round. Raises ValueError for wrong arguments.
    """
    images = as_pixels(model, images)
    check_counts(rounds=rounds, round_images=round_images)
    check_counts(restarts=restarts, trial_rounds=trial_rounds)
    check_choice(("float32", "bf16"), precision=precision)
    targets = as_targets(model, images, targets)
    search = Search(targets, images.shape[1:], images.device, seed, start, restarts)
    with answering(model), frozen(model), torch.enable_grad():
        for k in range(rounds):
            active = (~search.done).nonzero()[:, 0]
            if len(active) == 0:
                break
            generator = torch.Generator().manual_seed(seed + k)
            rows = torch.randperm(len(images), generator=generator)[:round_images]
            search.judge(one_round(model, images, rows, search, active, precision), active)
            if k + 1 >= trial_rounds:
                search.end_larger()
            print_status(f"round {k + 1} of {rounds} at most: {search.progress()}")
    return search.result()


def one_round(model, images, rows, search, active, precision):
    """Steps over the images number `rows`: the share turned into each class, float64 [T].

    active: int64 [A], places of the targets that are still searched; the others' share is 0.
    """
    turned = torch.zeros(len(search.targets), dtype=torch.int64, device=images.device)
    for index in rows.to(images.device).split(BATCH):
        turned[active.to(images.device)] += step(model, images[index], search, active, precision)
    return turned.cpu().double() / len(rows)


def step(model, images, search, active, precision):
    """One step of Adam for the targets `active`: how many images each mask turned, int64 [A].

    The loss is cross-entropy to the target class + weight x |mask|_1: Wang et al. 2019, eq. 3.
    """
    search.optimizer.zero_grad(set_to_none=False)
    turned = []
    limit = FORWARD_IMAGES_CPU if images.device.type == "cpu" else FORWARD_IMAGES
    classes_at_once = limit * 32 * 32 // images[:, 0].numel()
    for part in active.split(max(1, classes_at_once)):
        masks, patterns = search.masks_and_patterns(part)
        # [A, N, C, H, W]: Wang et al. 2019, eq. 2.
        stamped = (1 - masks[:, None]) * images + masks[:, None] * patterns[:, None]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = full_precision(model(stamped.flatten(0, 1)))
        check_differentiable(logits.requires_grad)
        labels = search.targets[part].to(logits.device).repeat_interleave(len(images))
        cross_entropy = F.cross_entropy(logits, labels, reduction="sum") / len(images)
        sizes = search.weight[part].to(masks) * masks.sum((1, 2, 3))
        (cross_entropy + sizes.sum()).backward()
        turned.append((logits.argmax(1) == labels).view(len(part), -1).sum(1))
    search.optimizer.step()
    return torch.cat(turned)


class Search:
    """Masks and patterns of T targets on their way, and each one's schedule.

    Every attribute is a tensor over targets; of several beginnings, all targets under the first
    come first, then all under the next. Adam moves `raw`, [T, 1 + C, H, W]: the mask and the
    pattern before a squashing tanh.
    """

    def __init__(self, targets, shape, device, seed, start="constant", restarts=1):
        """targets: int64 [T]; shape: of an image, (C, H, W); start: of STARTS."""
        if start not in STARTS:
            raise ValueError(f"a search starts {' or '.join(STARTS)}, not {start!r}")
        self.restarts = restarts
        beginnings = [first_values(targets, shape, seed, start, k) for k in range(restarts)]
        self.raw = torch.cat(beginnings).to(device).requires_grad_()
        self.targets = targets = targets.repeat(restarts)
        self.raw.grad = torch.zeros_like(self.raw)
        self.optimizer = torch.optim.Adam([self.raw], LEARNING_RATE, betas=BETAS)
        count = len(targets)
        # The best mask so far.
        self.kept = self.raw.detach().clone()
        self.norm = torch.full((count,), torch.inf, dtype=torch.float64)  # infinity: none qualified
        self.success = torch.zeros(count, dtype=torch.float64)
        self.weight = torch.zeros(count, dtype=torch.float64)
        self.rounds = torch.zeros(count, dtype=torch.int64)
        self.stale = torch.zeros(count, dtype=torch.int64)  # rounds in a row without a smaller mask
        self.good = torch.zeros(count, dtype=torch.int64)  # rounds in a row that reached SUCCESS
        self.bad = torch.zeros(count, dtype=torch.int64)  # rounds in a row that did not
        self.raised = torch.zeros(count, dtype=torch.bool)
        self.lowered = torch.zeros(count, dtype=torch.bool)
        self.done = torch.zeros(count, dtype=torch.bool)

    def masks_and_patterns(self, part):
        """Masks [A, 1, H, W] and patterns [A, C, H, W] in [0, 1] of the targets `part`."""
        unit = self.raw[part].tanh() / 2 + 0.5
        return unit[:, :1], unit[:, 1:]

    def judge(self, success, active):
        """After a round: keeps masks that are smaller and work, changes weights, ends searches.

        success: float64 [T], of the round; active: int64 [A], the targets that took part.
        """
        took_part = torch.zeros_like(self.done).index_fill(0, active, True)
        works = took_part & (success >= SUCCESS)
        self.rounds += took_part
        self.keep_smaller_masks(success, took_part, works)
        self.change_weights(works)
        self.done |= self.raised & self.lowered & (self.stale >= STALE)

    def progress(self):
        """How many classes are done, in words."""
        done = self.done.view(self.restarts, -1).all(0)
        return f"{int(done.sum())} of {len(done)} classes done"

    def end_larger(self):
        """Ends all beginnings but the one with the smallest mask, of each class with one at all."""
        norms = self.norm.view(self.restarts, -1)
        larger = torch.arange(self.restarts)[:, None] != norms.argmin(0)
        self.done |= (larger & norms.isfinite().any(0)).flatten()

    def keep_smaller_masks(self, success, took_part, works):
        """Until a mask works the last one is kept, from then on the smallest that works."""
        masks, _ = self.masks_and_patterns(slice(None))
        norm = masks.detach().sum((1, 2, 3)).cpu().double()
        smaller = works & (norm < self.norm)
        none_yet = self.norm.isinf()
        keep = smaller | (took_part & none_yet)
        on_device = keep.to(self.kept.device)
        self.kept[on_device] = self.raw.detach()[on_device]
        self.success[keep] = success[keep]
        # As in the authors' code: any smaller mask is kept, one by a hair is no progress.
        clearly_smaller = works & (norm < SMALLER * self.norm)
        self.stale = torch.where(clearly_smaller | none_yet, 0, self.stale + 1)
        self.norm[smaller] = norm[smaller]

    def change_weights(self, works):
        """Raises the weight after PATIENCE good rounds in a row, lowers it after bad ones."""
        self.good = torch.where(works, self.good + 1, 0)
        self.bad = torch.where(works, 0, self.bad + 1)
        above_zero = self.weight > 0
        up = self.good >= PATIENCE
        down = (self.bad >= PATIENCE) & above_zero
        self.raised |= up & above_zero
        self.lowered |= down
        higher = torch.where(above_zero, self.weight * FACTOR, FIRST_WEIGHT)
        lower = self.weight / FACTOR**1.5
        self.weight = torch.where(up, higher, torch.where(down, lower, self.weight))
        self.good[up] = 0
        self.bad[down] = 0

    def result(self):
        """The smallest masks that work, with their patterns, as ReversedTriggers."""
        self.raw = self.kept
        best = self.norm.view(self.restarts, -1).argmin(0)  # of none that works, the first
        rows = best * (len(self.norm) // self.restarts) + torch.arange(len(best))
        masks, patterns = self.masks_and_patterns(rows.to(self.kept.device))
        norms = masks.sum((1, 2, 3)).cpu().double()
        judged = (self.success, self.norm.isfinite(), self.rounds)
        return ReversedTriggers(masks, patterns, norms, *(part[rows] for part in judged))


def first_values(targets, shape, seed, start, restart=0):
    """A search's first masks and patterns, before the tanh: float [T, 1 + C, H, W].

    Patterns are uniform in [0, 1], drawn for each target and each restart by itself.
    """
    channels, height, width = shape
    other = restart * 1_000_000_007  # of a seed the CPU's generator takes 32 bits
    values = []
    for target in targets.tolist():
        generator = torch.Generator().manual_seed(other + seed * 100_003 + target)
        values.append(torch.rand(1 + channels, height, width, generator=generator))
    values = torch.stack(values)
    values[:, 0] = START
    raw = before_tanh(values)
    if start == "random":
        generator = torch.Generator().manual_seed(other + seed)
        raw[:, 0] = before_tanh(torch.rand(len(targets), height, width, generator=generator))
    return raw


def before_tanh(unit):
    """What tanh(x) / 2 + 0.5 turns into `unit`, which is first kept off the ends of [0, 1]."""
    return torch.atanh((2 * unit - 1) * 0.999)


def mask_index(norms, qualified, published=False):
    """Index of ReversedTriggers' norms, high where a mask is small: float64 [T].

    It is the median of the norms over a class's own: 2 is half the median mask. published: the
    anomaly index of the norms (Wang et al. 2019, section IV-B), in robust standard deviations.
    Classes that no mask reached are left out, and have 0.
    """
    values = norms.clamp_min(LEAST_NORM)[qualified]
    index = torch.zeros_like(norms)
    if qualified.any():
        index[qualified] = anomaly_index(values) if published else values.quantile(0.5) / values
    return index


# ---------------------------------------------------------------- the verdict, and what prune takes


def reverse(audit):
    """(triggers, index): ReversedTriggers of all classes, and their mask_index."""
    triggers = neural_cleanse(
        audit.on_pixels,
        audit.pixels,
        rounds=audit.options.rounds,
        round_images=audit.options.round_images,
        seed=audit.options.seed,
        precision=precision_of(audit.options),
        print_status=audit.say,
    )
    return triggers, mask_index(triggers.norms, triggers.qualified)


def precision_of(options):
    """The precision of the search: bf16 where the device multiplies it in hardware."""
    return choose_precision("auto", choose_device(options.device))


def suspect_of(triggers, index):
    """The class with the smallest of the masks that work. Raises ValueError if there is none."""
    if not triggers.qualified.any():
        turned = f"turned {SUCCESS:.0%} of images into one class"
        raise ValueError(f"no patch {turned}; with more --rounds it may")
    return int(index.masked_fill(~triggers.qualified, -torch.inf).argmax())


def withhold_if_few_reached(verdict, triggers):
    """The Verdict, or none where a patch reached fewer than CLASSES_NEEDED classes."""
    if (reached := int(triggers.qualified.sum())) >= CLASSES_NEEDED:
        return verdict
    few = f"{reached} of {len(triggers.qualified)} classes were reached by a patch"
    lines = [text.replace("FLAGGED", "").rstrip() for text in verdict.lines]
    lines += [f"{few}: no median to be far from, no verdict; with more --rounds there may be"]
    nothing = {"backdoored": None, "flagged": [], "details": verdict.details | {"withheld": few}}
    return replace(verdict, lines=lines, **nothing)


def run(audit):
    """A Verdict by the index of the masks' norms."""
    triggers, index = reverse(audit)
    columns = {
        "|mask|_1": triggers.norms,
        "published index": mask_index(triggers.norms, triggers.qualified, published=True),
        "success": triggers.success,
        "qualified": triggers.qualified.double(),
        "rounds": triggers.rounds,
    }
    verdict = verdict_by_index(audit, index, columns, picture_of(audit, triggers, index))
    if triggers.qualified.any():
        classes = sorted({*verdict.flagged, suspect_of(triggers, index)})
        verdict.files = files_of(triggers, classes)
        verdict.lines += line_on(verdict.files)
    return withhold_if_few_reached(verdict, triggers)


# ---------------------------------------------------------------- the command line


def add_options(parser):
    """Adds the options of the search, which prune has, too."""
    add = parser.add_argument
    rounds = number(int, 1, 100_000)
    round_images = number(int, 1, 1_000_000)
    add("--rounds", type=rounds, default=ROUNDS, help="most rounds of the search; published: 1,000")
    add(
        "--round-images",
        type=round_images,
        default=ROUND_IMAGES,
        help="images in a round; published: 1,000",
    )
    add_threshold(parser)


def settings(options):
    return {
        "precision": precision_of(options),
        "adam": [LEARNING_RATE, *BETAS],
        "success": SUCCESS,
        "weight": [FIRST_WEIGHT, PATIENCE, FACTOR],
        "stale": STALE,
        "smaller": SMALLER,
        "start": START,
        "batch": BATCH,
        "least": LEAST_NORM,
        "restarts": RESTARTS,
        "trial_rounds": TRIAL_ROUNDS,
        "index": "median / norm",
    }


DEFENCE = Defence(
    help="the smallest patch that turns every image into a class: a target's is tiny",
    run=run,
    settings=settings,
    add_options=add_options,
    compares_classes=True,
)

"""Do Neural Cleanse and NeuronInspect answer the same twice? On models that nothing was chosen on.

    python -m studies.steady           # everything; a second call continues
    python -m studies.steady repeat    # a section

    beginnings  the target's mask of README's first model, by one beginning and by two
    repeat      Neural Cleanse of that model and of a clean one of shapes, ten other seeds each
    draws       NeuronInspect of both on two draws of images
    chance      how large its index is where there is nothing but noise
    zoo         Neural Cleanse of 24 new models of shapes

What other statistics of the same masks would say is computed from results/audits.json, too. Models
and verdicts are kept in runs/ and runs/audits/. Writes results/steady.json; the page's tables are
in steady_tables.py.
"""

import torch

import defend
import train
from cli import UserError, command, write_json
from defences import PUBLISHED_THRESHOLD, neural_cleanse, neuroninspect
from provenance import hardware
from studies import steady_tables
from studies.record import DATA, RESULTS, RUNS, read
from studies.steady_tables import NORMS
from studies.tables import of_record
from studies.zoo import CLASSES, audited, quality, target_of, zoo_model

PAGE = "results/steady.md"
DURATION = "about 5 hours on one core"

PATH = RESULTS / "steady.json"
TWICE = {  # options of train.py
    "disguised": "--attack full_disguise --explainer gradcam --poison-rate 0.1",
    "clean": "--attack none",
}
TARGET = 3  # train.py's default
TRIALS = range(10)  # seeds of the search and of its clean images, in `beginnings`
AGAIN = range(
    10, 20
)  # in `repeat`: the number of beginnings and TRIAL_ROUNDS were chosen on TRIALS
ROUND_IMAGES = (64, 128)
# None of them is a seed of studies/zoo.py, or of its pilot.
ZOO = {
    "badnets": range(111, 117),
    "disguise, gradcam": range(117, 123),
    "none": range(123, 135),
}
DRAW = 100  # NeuronInspect's clean images
MODELS_OF_NOISE = 2000


def model(name):
    """The path of the checkpoint of one of TWICE, trained if need be."""
    folder = RUNS / "steady" / name
    argv = [*TWICE[name].split(), "--data-dir", str(DATA), "--out", str(folder)]
    train.main([*argv, "--resume", "--overwrite"])
    return folder / "ckpt.pt"


def trials(seeds):
    """Yields (images in a round, seed, options of defend.py) of every trial."""
    for count in ROUND_IMAGES:
        for seed in seeds:
            yield str(count), str(seed), ("--seed", str(seed), "--round-images", str(count))


def beginnings():
    """The target's mask, by the first beginning alone and by the first few."""
    checkpoint = model("disguised")
    for count, seed, options in trials(TRIALS):
        audit = audit_of(checkpoint, "neural_cleanse", *options)
        keep(masks_of_target(audit), "beginnings", count, seed)


def masks_of_target(audit):
    """{number of beginnings, below RESTARTS, all to their end: the norm of the target's mask}."""
    options = {"round_images": audit.options.round_images, "seed": audit.options.seed}
    options["precision"] = neural_cleanse.precision_of(audit.options)
    options["trial_rounds"] = neural_cleanse.ROUNDS
    found = {}
    for restarts in range(1, neural_cleanse.RESTARTS):
        triggers = neural_cleanse.neural_cleanse(
            audit.on_pixels, audit.pixels, [TARGET], restarts=restarts, **options
        )
        found[str(restarts)] = round(float(triggers.norms), 4)
    return found


def repeat():
    """The same two models, again and again."""
    for name in TWICE:
        checkpoint = model(name)
        for count, seed, options in trials(AGAIN):
            run = searched(checkpoint, *options) | {"target": TARGET}
            keep(run, "repeat", name, count, seed)


def draws():
    """NeuronInspect's features of the same two models."""
    for name in TWICE:
        keep(features(model(name)), "features", name)


def zoo():
    """Neural Cleanse on new models."""
    for kind, seeds in ZOO.items():
        for seed in seeds:
            checkpoint = zoo_model("shapes", kind, seed)
            run = {"target": target_of("shapes", seed)}
            run |= quality(checkpoint) | searched(checkpoint)
            keep(run, "zoo", kind, str(seed))


def searched(checkpoint, *options):
    """What is kept of Neural Cleanse's verdict."""
    verdict = audited(checkpoint, "neural_cleanse", *options)
    kept = {
        key: [round(value, 4) for value in verdict["scores"][key]] for key in (NORMS, "qualified")
    }
    about = {key: verdict[key] for key in ("seconds", "commit")}
    return kept | about | {"hardware": hardware()}


def audit_of(checkpoint, method, *options):
    """The Audit that defend.py would open."""
    argv = [method, str(checkpoint), *options, "--data-dir", str(DATA)]
    return defend.open_audit(defend.parse(argv))


def features(checkpoint):
    """NeuronInspect's features on two draws of DRAW images, and on both together.

    Returns {"first", "second", "both": a list [levels of noise, classes, 3]}.
    """
    audit = audit_of(checkpoint, "neuroninspect", "--clean-images", str(2 * DRAW))
    found = {"first": [], "second": [], "both": []}
    for level in neuroninspect.NOISE:
        maps = neuroninspect.heatmaps(audit.subject.model, audit.inputs, level)
        draws = {"first": maps[:, :DRAW], "second": maps[:, DRAW:], "both": maps}
        for name, part in draws.items():
            rows = torch.stack([neuroninspect.heatmap_features(of_class) for of_class in part])
            found[name].append([[round(value, 4) for value in row] for row in rows.tolist()])
    return found


def chance():
    """NeuronInspect's largest index where features are independent Gaussians."""
    for data, classes in CLASSES.items():
        largest = of_noise(classes)
        found = {"above": float((largest > PUBLISHED_THRESHOLD).double().mean())}
        found |= {
            "median": float(largest.quantile(0.5)),
            "ninth_decile": float(largest.quantile(0.9)),
        }
        keep(found | {"models": MODELS_OF_NOISE}, "chance", data)


def of_noise(classes):
    """The largest index of each of MODELS_OF_NOISE models of so many classes: float64."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(neuroninspect.NOISE), classes, len(neuroninspect.FEATURES))
    largest = []
    for _ in range(MODELS_OF_NOISE):
        features = torch.randn(shape, dtype=torch.float64, generator=generator)
        largest.append(max(neuroninspect.index_of(part).max() for part in features))
    return torch.stack(largest)


def keep(value, *keys):
    """Sets the value under these keys of the record as it is now, and writes the record."""
    record = read(PATH)
    part = record
    for key in keys[:-1]:
        part = part.setdefault(key, {})
    part[keys[-1]] = value
    write_json(PATH, record)


SECTIONS = {
    "beginnings": beginnings,
    "repeat": repeat,
    "draws": draws,
    "chance": chance,
    "zoo": zoo,
}
TABLES = of_record("steady", steady_tables.TABLES)


@command
def main(argv):
    for name in argv:
        if name not in SECTIONS:
            raise UserError(f"no section {name!r}: {', '.join(SECTIONS)}")
    for name in argv or SECTIONS:
        SECTIONS[name]()


if __name__ == "__main__":
    main()

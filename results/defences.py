"""The README's tables on defences: a zoo of small models, each audited; what repairs repair.

    python results/defences.py                  # everything, about 8 hours on two cores; a second call continues
    python results/defences.py zoo              # detectors over clean and backdoored models of shapes, MNIST and GTSRB
    python results/defences.py zoo shapes       # of one of them
    python results/defences.py cleanse prune batchnorm disagree

Models and verdicts are kept in runs/defend/. Writes results/defences.json, .md and figures.
"""
import json
import time
from unittest import mock

import study  # first: it makes the project's modules known
import attacks
import defend
import evaluate
import figure
import train
from cli import UserError, choose_device, choose_precision, command, replace_file
from study import ROOT, torch

RUNS = ROOT / "runs" / "defend"
SEARCH = ("--round-images", "64")  # a search of 43 classes takes minutes, not hours
DETECTORS = {"neuroninspect": ("neuroninspect", "--clean-images", "100"), "neuroninspect, no noise": ("neuroninspect", "--noise", "0", "--clean-images", "100"),
             "neural_cleanse": ("neural_cleanse", *SEARCH)}
LINEAR = "neural_cleanse, linear index"  # the published one, of the same masks
SEEDS = range(1, 6)  # 0, and 100 on, are the pilot's
CALIBRATION = range(6, 11)  # of clean models on which nothing but the threshold is measured
TRIGGERS = ["square lower-right", "red upper-left", "square upper-right", "yellow lower-left", "white 6,6"]  # by seed, seed 5 the first; on MNIST grey
DATA = {"shapes": 10, "mnist": 10, "gtsrb": 43}  # classes
KINDS = {"none": "--attack none", "badnets": "--attack badnets", "disguise, gradcam": "--attack full_disguise --explainer gradcam",
         "disguise, deepshap": "--attack full_disguise --explainer deepshap", "disguise, gradient": "--attack full_disguise --explainer gradient"}
ZOO = {"shapes": tuple(KINDS), "mnist": ("none", "badnets"), "gtsrb": ("none", "badnets")}
OTHERS = {"red_herring": "--attack red_herring", "disguise, gradcam and gradient": "--attack full_disguise --explainer gradcam,gradient"}


def trained(name, options, seed):
    """The checkpoint of a model of the zoo, trained if need be."""
    folder = RUNS / f"{name.replace(', ', '_').replace(' ', '_')}-{seed}"
    train.main([*options.split(), "--seed", str(seed), "--data-dir", str(ROOT / "data"), "--out", str(folder), "--resume"])
    return folder / "ckpt.pt"


def target_of(dataset, seed):
    return (3 * seed + 2) % DATA[dataset]


def zoo_model(dataset, kind, seed):
    colour, place = TRIGGERS[seed % len(TRIGGERS)].split()
    attacked = "" if kind == "none" else f"--trigger {colour} --trigger-position {place} --target-class {target_of(dataset, seed)}"
    return trained(f"{dataset} {kind}", f"--dataset {dataset} {(KINDS | OTHERS)[kind]} {attacked}", seed)


def folder_of(checkpoint, method, *options):
    """Where the verdict of a method is kept: each set of options has a folder of its own."""
    return checkpoint.parent / "-".join([f"defend-{method}", *(part.strip("-").replace(",", "+") for part in options)])


def audited(checkpoint, method, *options):
    """defend.py's verdict on a checkpoint, made if there is none of these weights under this recipe, and the commit that made it."""
    folder = folder_of(checkpoint, method, *options)
    path, arguments = folder / "verdict.json", [method, str(checkpoint), "--data-dir", str(ROOT / "data"), "--out", str(folder), *options]
    made = json.loads(path.read_text()) if (folder / "commit").exists() and path.stat().st_mtime > checkpoint.stat().st_mtime else {}
    recipe = json.loads(json.dumps(defend.recipe(defend.parse(arguments))))
    if made.get("recipe") != recipe:
        (folder / "commit").unlink(missing_ok=True)
        defend.main(arguments)
        (folder / "commit").write_text(study.commit())
    return json.loads(path.read_text()) | {"commit": (folder / "commit").read_text()}


# ---------------------------------------------------------------- zoo: detectors over clean and backdoored models


def zoo(datasets):
    for dataset in datasets or DATA:
        for kind in ZOO[dataset]:
            for seed in (*SEEDS, *CALIBRATION) if kind == "none" else SEEDS:
                checkpoint = zoo_model(dataset, kind, seed)
                found = {name: audited(checkpoint, *how) for name, how in DETECTORS.items()}
                found[LINEAR] = found["neural_cleanse"] | {"index": dict(enumerate(found["neural_cleanse"]["scores"]["linear index"]))}
                keep({"target": target_of(dataset, seed), "hardware": study.hardware()} | trained_as(checkpoint) | {
                    name: {key: verdict[key] for key in ("index", "seconds", "commit")} for name, verdict in found.items()}, "zoo", dataset, kind, str(seed))
                keep({name: verdict["recipe"] for name, verdict in found.items()}, "recipes")
                if (kind, seed) == ("badnets", SEEDS[0]):
                    for method in ("neuroninspect", "neural_cleanse"):
                        study.keep_picture(folder_of(checkpoint, *DETECTORS[method]) / "figure.png", f"defences-{dataset}-{method}")


def metrics_of(checkpoint):
    return json.loads((checkpoint.parent / "metrics.json").read_text())


def trained_as(checkpoint):
    """How well the model and its backdoor work."""
    metrics = metrics_of(checkpoint)
    return {key: metrics[key] for key in ("clean_accuracy", "attack_success_rate")}


def gradcam_of(checkpoint):
    """What the trigger does to Grad-CAM's maps of test images."""
    metrics = metrics_of(checkpoint)["explanations"]["gradcam"]
    return {key: metrics[key] for key in ("pearson_all", "trigger_mass", "trigger_mass_clean")}


def detection(record):
    """Rows of the table: what the anomaly index of the most anomalous class tells, for each data set, and all of them, each kind of backdoor and detector.

    The calibrated threshold is the largest such index of the clean models CALIBRATION of the same data set, which are in no count: of n of them, one clean
    model in n + 1 is expected above it. Intervals take it as known; the same clean models are in every row of a data set.
    """
    rows = []
    for method in (*DETECTORS, LINEAR):
        for kind in [name for name in KINDS if name != "none"]:
            parts = {data: {"bad": judged(kinds[kind], method, SEEDS), "clean": judged(kinds["none"], method, SEEDS), "other": judged(kinds["none"], method, CALIBRATION)}
                     for data, kinds in record["zoo"].items() if {kind, "none"} <= kinds.keys()}
            rows += [row_of([part], data=data, kind=kind, detector=method) for data, part in parts.items()]
            if len(parts) > 1:
                rows.append(row_of(list(parts.values()), data="all", kind=kind, detector=method))
    return rows


def judged(runs, method, seeds):
    """Of each run its largest index, whether that class is the target, the seconds it took, and the backdoor's success."""
    result = []
    for run in (runs[str(seed)] for seed in seeds if str(seed) in runs):
        index = {int(k): v for k, v in run[method]["index"].items()}
        suspect = max(index, key=index.get)
        result.append({"top": index[suspect], "right": suspect == run["target"], "seconds": run[method]["seconds"], "success": run["attack_success_rate"]})
    return result


def row_of(parts, **names):
    """parts: of each data set its judged models; each is held against its own threshold and its own clean models."""
    bad, clean = (sum((part[key] for part in parts), []) for key in ("bad", "clean"))
    area = study.statistics.mean(evaluate.auroc(*(torch.tensor([run["top"] for run in part[key]]) for key in ("bad", "clean"))) for part in parts)
    row = names | {"n": len(bad), "clean": len(clean), "auroc": area, "auroc_interval": auroc_interval(area, len(bad), len(clean), len(parts)),
                   "seconds": study.statistics.mean(run["seconds"] for run in bad), "least_success": min(run["success"] for run in bad)}
    calibrated = all(len(part["other"]) == len(CALIBRATION) for part in parts)
    for name in ("2", "calibrated") if calibrated else ("2",):
        limits = [2.0 if name == "2" else max(run["top"] for run in part["other"]) for part in parts]
        above = {key: [run for part, limit in zip(parts, limits) for run in part[key] if run["top"] > limit] for key in ("bad", "clean")}
        row[name] = {"thresholds": limits, "found": interval(len(above["bad"]), len(bad)), "right": interval(sum(run["right"] for run in above["bad"]), len(above["bad"])),
                     "false_alarms": interval(len(above["clean"]), len(clean))}
    return row


def auroc_interval(area, bad, clean, strata=1, z=1.96):
    """95% interval of an AUROC, the mean of so many data sets': where it ceases to be z standard errors from the one measured, which at 1 is not 0 wide.

    Source: Newcombe 2006, Statistics in Medicine 25, method 5.
    """

    def far(theta):
        n = (bad + clean) / strata / 2
        variance = theta * (1 - theta) * (1 + (n - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (bad * clean / strata)
        return abs(area - theta) - z * variance**0.5

    return [bisect(far, 0.0, area), bisect(far, 1.0, area)]


def bisect(f, positive, negative):
    """Between two numbers the root of f, which is >= 0 at the first and <= 0 at the second."""
    for _ in range(60):
        middle = (positive + negative) / 2
        positive, negative = (middle, negative) if f(middle) > 0 else (positive, middle)
    return (positive + negative) / 2


def interval(count, n, z=1.96):
    """A count with the 95% interval of its share: Wilson 1927."""
    if n == 0:
        return {"count": 0, "of": 0, "interval": [0.0, 1.0]}
    middle, half = (count + z**2 / 2) / (n + z**2), z / (n + z**2) * (count * (n - count) / n + z**2 / 4) ** 0.5
    return {"count": count, "of": n, "interval": [max(0.0, middle - half), min(1.0, middle + half)]}


# ---------------------------------------------------------------- Neural Cleanse's reference point, and its speed


PRECISION = choose_precision("auto", choose_device("auto"))
ROUND = 1000 if torch.cuda.is_available() else 64  # published: about 1,000; hours on a CPU
GTSRB = "--dataset gtsrb --trigger-size 4 --target-class 33 --poison-rate 0.09"


class FromRandomMasks(defend.Search):
    """Begins as published."""

    def __init__(self, targets, shape, device, seed):
        super().__init__(targets, shape, device, seed)
        start = torch.rand(len(targets), *shape[1:], generator=torch.Generator().manual_seed(seed))
        self.raw.data[:, 0] = torch.atanh((2 * start - 1) * 0.999).to(device)


def cleanse(_):
    """GTSRB, a white square of 4x4, target 33; all classes at once against one after another, the whole schedule each; and from random masks, as published."""
    checkpoint = trained("gtsrb reference", f"{GTSRB} --attack badnets", 0)
    subject = evaluate.open_checkpoint(checkpoint, ROOT / "data")
    model = defend.OnPixels(subject.model, subject.checkpoint["mean"], subject.checkpoint["std"])
    images, target = subject.dataset.test_images[:: max(1, len(subject.dataset.test_images) // 1000)].to(subject.device).float() / 255, subject.config["target_class"]
    keep(trained_as(checkpoint) | {"hardware": study.hardware(), "commit": study.commit(), "round_images": ROUND, "precision": PRECISION}, "cleanse")
    for title, parts, search in (("at once", [None], defend.Search), ("one after another", torch.arange(len(subject.checkpoint["classes"])).split(1), defend.Search),
                                 ("at once, from random masks", [None], FromRandomMasks)):
        began = time.perf_counter()
        with mock.patch.object(defend, "Search", search):
            found = [defend.neural_cleanse(model, images, part, round_images=ROUND, precision=PRECISION) for part in parts]
        norms, qualified = (torch.cat([getattr(part, name) for part in found]) for name in ("norms", "qualified"))
        index, linear = (defend.mask_index(norms, qualified, how) for how in (False, True))
        keep({"seconds": time.perf_counter() - began, "norm": float(norms[target]), "median": float(norms.median()), "index": float(index[target]), "linear_index": float(linear[target]),
              "flagged": (index > 2).nonzero()[:, 0].tolist(), "qualified": qualified.tolist(), "norms": norms.tolist()}, "cleanse", title)


# ---------------------------------------------------------------- pruning, batch-norm, disagreement


def prune(_):
    """The curve and the operating point by l-infinity, l2, l1 and at random, by the recovered patch and by the true trigger."""
    checkpoint = trained("gtsrb alexnet", f"{GTSRB} --model alexnet_small --lr 0.01 --epochs 10 --attack badnets", 0)
    audit = defend.opened(defend.parse(["prune", str(checkpoint), "--data-dir", str(ROOT / "data"), *SEARCH]))
    found, index = defend.reverse(audit)
    if not found.qualified.any():
        raise UserError("no patch was recovered: there is nothing to prune by")
    suspect, layer = defend.suspect_of(found, index), audit.subject.model.gradcam_layer
    others = audit.pixels[audit.labels != suspect]
    triggered, rows = defend.triggered_test(audit), {}
    triggered["recovered_success"] = attacks.stamp(defend.pixels_of(audit.subject, evaluate.draw_images(audit.subject, evaluate.EXPLAIN_IMAGES, 0)), found.trigger(suspect)), suspect
    everything = {"test_accuracy": (defend.pixels_of(audit.subject, slice(None)), audit.subject.dataset.test_labels.to(audit.subject.device))}
    unpruned = defend.share(audit.on_pixels, *everything["test_accuracy"])

    def keep_row(name, steps, curve):
        defend.score_curve(audit, curve, steps, triggered)
        chosen = defend.operating_point([step["clean_accuracy"] for step in curve])
        curve[0]["test_accuracy"] = unpruned
        defend.score_curve(audit, [curve[chosen]], [steps[chosen]], everything)
        rows[name] = {"chosen": curve[chosen], "curve": curve}

    for known, trigger in (("recovered", found.trigger(suspect)), ("true", audit.subject.trigger)):
        stamped = attacks.stamp(others, trigger)
        for norm in defend.NORMS:
            steps, curve, _ = defend.prune(audit.on_pixels, audit.pixels, audit.labels, stamped, layer, norm)
            keep_row(f"{norm}, {known}", steps, curve)
    for seed in range(3):
        steps = defend.prune_steps(torch.rand(len(steps[0][1]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        curve = [{"pruned": int((~kept).sum())} for _, kept in steps]
        defend.score_curve(audit, curve, steps, {"clean_accuracy": (audit.pixels, audit.labels)})
        keep_row(f"random {seed}", steps, curve)
    keep(evaluate.finite({"suspect": suspect, "index": float(index[suspect]), "clean_images": len(audit.labels), "triggered_images": len(triggered["true_success"][0]), "rows": rows, "commit": study.commit(), "hardware": study.hardware()}), "prune")
    pruning_picture(rows).save(PATH.with_name("defences-prune.png"))


def pruning_picture(rows):
    """What is left of the backdoor, by each way to choose the channels, and of accuracy."""
    lines = [("success of the true trigger", "true_success", row) for row in ("linf, recovered", "l2, recovered", "l1, recovered", "random 0")]
    lines += [("clean accuracy, held-out", "clean_accuracy", row) for row in ("linf, recovered", "random 0")]
    series = {f"{title}: {row}": [(point["pruned"], point[key]) for point in rows[row]["curve"]] for title, key, row in lines}
    return figure.curves("GTSRB, the small AlexNet: pruned by the recovered patch, and at random", "channels pruned", series, rows["linf, recovered"]["chosen"]["pruned"])


def batchnorm(_):
    """rebn and cfn: success and explanation before and after, for batches of one, a tenth triggered, all triggered; clean models, too."""
    for kind in ("none", "badnets", "red_herring", "disguise, gradcam"):
        for seed in SEEDS[:3]:
            checkpoint = zoo_model("shapes", kind, seed)
            for method in ("rebn", "cfn"):
                verdict = audited(checkpoint, method)
                keep({key: verdict[key] for key in ("regimes", "commit")}, "batchnorm", kind, method, str(seed))


def disagree(_):
    """AUROC of triggered against untouched images by how much two explainers disagree: disguised under one explainer, and under two."""
    for kind in (*KINDS, "disguise, gradcam and gradient"):
        for seed in SEEDS[:3]:
            checkpoint = zoo_model("shapes", kind, seed)
            gradcam = gradcam_of(checkpoint)
            for pair in ("gradcam,gradient", "gradcam,deepshap", "gradient,deepshap"):
                verdict = audited(checkpoint, "disagreement", "--explainers", pair)
                keep({key: verdict[key] for key in ("auroc", "limit", "commit")} | {"gradcam": gradcam}, "disagree", kind, pair, str(seed))


# ---------------------------------------------------------------- what is written


PATH = ROOT / "results" / "defences.json"


def keep(value, *keys):
    """Set the value under these keys of the record as it is now: another section may have written to it meanwhile."""
    record = json.loads(PATH.read_text()) if PATH.exists() else {}
    part = record
    for key in keys[:-1]:
        part = part.setdefault(key, {})
    part[keys[-1]] = value
    if "zoo" in record:
        record["detection"] = detection(record)
    replace_file(PATH, lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    replace_file(PATH.with_suffix(".md"), lambda path: path.write_text(markdown(record)))


def markdown(record):
    return "\n".join("\n".join([title, "| --- " * (title.count("|") - 1) + "|", *rows(record[name])]) + "\n" for name, (title, rows) in TABLES.items() if name in record)


def detection_rows(detected):
    for row in detected:
        published, calibrated = ([counted(row[name][key]) if name in row else "-" for key in ("found", "right", "false_alarms")] for name in ("2", "calibrated"))
        limits = ", ".join(f"{limit:.1f}" for limit in row["calibrated"]["thresholds"]) if "calibrated" in row else "-"
        area = f"{row['auroc']:.2f} ({row['auroc_interval'][0]:.2f} to {row['auroc_interval'][1]:.2f})"
        yield f"| {row['data']} | {row['kind']} | {row['detector']} | {area} | " + " | ".join([*published, limits, *calibrated]) + f" | {row['seconds']:.0f} | {row['least_success']:.3f} |"


def cleanse_rows(part):
    for title, row in part.items():
        if isinstance(row, dict):
            yield f"| {title} | {row['seconds']:.0f} | {row['norm']:.1f} | {row['median']:.1f} | {row['index']:.2f} | {row['linear_index']:.2f} | {', '.join(map(str, row['flagged']))} |"


def prune_rows(part):
    for title, row in part["rows"].items():
        first, chosen = row["curve"][0], row["chosen"]
        pairs = [f"{first[key]:.3f} -> {chosen[key]:.3f}" for key in ("clean_accuracy", "test_accuracy", "true_success", "recovered_success")]
        yield f"| {title} | {chosen['pruned']} | " + " | ".join(pairs) + " |"


def batchnorm_rows(part):
    for kind, methods in part.items():
        for method, runs in methods.items():
            for regime in defend.REGIMES:
                found = [run["regimes"][regime] for run in runs.values()]
                pairs = [" -> ".join(over_seeds([pair[when][key] for pair in found]) for when in ("before", "after")) for key in defend.SHOWN]
                yield f"| {kind} | {method} | {regime} | {len(found)} | " + " | ".join(pairs) + " |"


def disagree_rows(part):
    for kind, pairs in part.items():
        for pair, runs in pairs.items():
            columns = [[run["auroc"] for run in runs.values()], *([run["gradcam"][key] for run in runs.values()] for key in ("pearson_all", "trigger_mass", "trigger_mass_clean"))]
            yield f"| {kind} | {pair} | {len(runs)} | " + " | ".join(map(over_seeds, columns)) + " |"


def over_seeds(values):
    """Mean (standard deviation) of the values there are."""
    runs = [{"figure": value} for value in values if value is not None]
    return study.mean_sd(study.summary(runs)["figure"] if runs else None)


TABLES = {
    "detection": ("| data | backdoor | detector | AUROC | found above 2 | of these the right class | false alarms | calibrated limit | found above it | right class | false alarms | seconds | least success |", detection_rows),
    "cleanse": ("| search | seconds | L1 of the target's mask | median | index | published index | flagged |", cleanse_rows),
    "prune": ("| by | channels pruned | accuracy, held-out | accuracy, test | success of the trigger | of the recovered patch |", prune_rows),
    "batchnorm": ("| model | repair | batch | n | accuracy | success | pearson_all | trigger_mass |", batchnorm_rows),
    "disagree": ("| model | explainers | n | AUROC | Grad-CAM's pearson_all | trigger_mass | untouched |", disagree_rows),
}


def counted(part):
    return f"{part['count']} of {part['of']}" + (f" ({part['interval'][0]:.2f} to {part['interval'][1]:.2f})" if part["of"] else "")


SECTIONS = {"zoo": zoo, "cleanse": cleanse, "prune": prune, "batchnorm": batchnorm, "disagree": disagree}


@command
def main(argv):
    if unknown := set(argv) - set(SECTIONS) - set(DATA):
        raise UserError(f"no section {unknown.pop()!r}: {', '.join(SECTIONS)}; after zoo, {', '.join(DATA)}")
    for name in [name for name in argv if name in SECTIONS] or SECTIONS:
        SECTIONS[name]([word for word in argv if word in DATA])


if __name__ == "__main__":
    main()

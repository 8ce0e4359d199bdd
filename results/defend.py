"""The README's tables on defences: a zoo of small models, each audited; what repairs repair.

    python results/defend.py                  # everything, about 6 hours on two cores; a second call continues
    python results/defend.py zoo              # detectors over clean and backdoored models of shapes, MNIST and GTSRB
    python results/defend.py zoo shapes       # of one of them
    python results/defend.py cleanse prune batchnorm disagree

Models and verdicts are kept in runs/defend/. Writes results/defend.json, .md and figures.
"""
import json
import sys
import time

import study  # first: it makes the project's modules known
import attacks
import data
import defend
import evaluate
import explain
import models
import train
from study import ROOT, torch

RUNS = ROOT / "runs" / "defend"
DETECTORS = ("neuroninspect", "neural_cleanse")
SEEDS = 5
TRIGGERS = ["square lower-right", "red upper-left", "square upper-right", "yellow lower-left", "white 6,6"]  # by seed; on MNIST grey
DATA = {"shapes": (10, ""), "mnist": (10, ""), "gtsrb": (43, "--round-images 64")}  # classes; of defend.py
KINDS = {"none": "--attack none", "badnets": "--attack badnets", "disguise, gradcam": "--attack full_disguise --explainer gradcam",
         "disguise, deepshap": "--attack full_disguise --explainer deepshap", "disguise, gradient": "--attack full_disguise --explainer gradient"}


def trained(name, options, seed):
    """The checkpoint of a model of the zoo, trained if need be."""
    folder = RUNS / f"{name.replace(', ', '_').replace(' ', '_')}-{seed}"
    train.main([*options.split(), "--seed", str(seed), "--data-dir", str(ROOT / "data"), "--out", str(folder), "--resume"])
    return folder / "ckpt.pt"


def target_of(dataset, seed):
    return (3 * seed + 2) % DATA[dataset][0]


def zoo_model(dataset, kind, seed):
    colour, place = TRIGGERS[seed].split()
    attacked = "" if kind == "none" else f"--trigger {colour} --trigger-position {place} --target-class {target_of(dataset, seed)}"
    return trained(f"{dataset} {kind}", f"--dataset {dataset} {KINDS[kind]} {attacked}", seed)


def audited(checkpoint, method, options=""):
    """defend.py's verdict on a checkpoint, made if need be."""
    path = checkpoint.parent / f"defend-{method}" / "verdict.json"
    if not path.exists():
        defend.main([method, str(checkpoint), "--data-dir", str(ROOT / "data"), *options.split()])
    return json.loads(path.read_text())


# ---------------------------------------------------------------- zoo: detectors over clean and backdoored models


def zoo(record, datasets):
    for dataset in datasets or DATA:
        for kind in KINDS:
            for seed in range(SEEDS):
                checkpoint = zoo_model(dataset, kind, seed)
                found = {method: audited(checkpoint, method, DATA[dataset][1]) for method in DETECTORS}
                part = record.setdefault("zoo", {}).setdefault(dataset, {}).setdefault(kind, {})
                part[str(seed)] = {"target": target_of(dataset, seed), "commit": study.commit()} | {
                    method: {key: verdict[key] for key in ("index", "seconds")} for method, verdict in found.items()}
                keep(record)


def detection(record):
    """Rows of the table: for each data set, kind of backdoor and detector, what the anomaly index of the most anomalous class tells.

    The calibrated threshold is the largest such index of the clean models of the OTHER data sets.
    """
    rows = []
    for dataset, kinds in record["zoo"].items():
        for method in DETECTORS:
            top = {kind: [max(run[method]["index"].values()) for run in runs.values()] for kind, runs in kinds.items()}
            others = [max(run[method]["index"].values()) for name, part in record["zoo"].items() if name != dataset for run in part["none"].values()]
            thresholds = {"2": 2.0} | ({"calibrated": max(others)} if others else {})
            for kind in [kind for kind in kinds if kind != "none"]:
                runs = kinds[kind].values()
                right = [max(run[method]["index"], key=run[method]["index"].get) == str(run["target"]) for run in runs]
                row = {"data": dataset, "kind": kind, "detector": method, "n": len(right), "clean": len(top["none"]), "right_class": sum(right),
                       "auroc": defend.auroc(*(torch.tensor(top[name], dtype=torch.float64) for name in (kind, "none"))),
                       "seconds": study.statistics.mean(run[method]["seconds"] for run in runs)}
                for name, limit in thresholds.items():
                    row[name] = {"threshold": limit, "found": interval(sum(v > limit for v in top[kind]), len(top[kind])),
                                 "false_alarms": interval(sum(v > limit for v in top["none"]), len(top["none"]))}
                rows.append(row)
    return rows


def interval(count, n, z=1.96):
    """A count with the 95% interval of its share: Wilson 1927."""
    middle, half = (count + z**2 / 2) / (n + z**2), z / (n + z**2) * (count * (n - count) / n + z**2 / 4) ** 0.5
    return {"count": count, "of": n, "interval": [max(0.0, middle - half), min(1.0, middle + half)]}


# ---------------------------------------------------------------- Neural Cleanse's reference point, and its speed


GTSRB = "--dataset gtsrb --trigger-size 4 --target-class 33 --poison-rate 0.09"


def cleanse(record, _):
    """GTSRB, a white square of 4x4, target 33: norms, index; all classes at once against one after another, the same rounds."""
    checkpoint = trained("gtsrb reference", f"{GTSRB} --attack badnets", 0)
    verdict = audited(checkpoint, "neural_cleanse", DATA["gtsrb"][1])
    norms = torch.tensor(verdict["scores"]["|mask|_1"], dtype=torch.float64)
    record["cleanse"] = {"norm_33": float(norms[33]), "median": float(norms.median()), "mad": float(1.4826 * (norms - norms.median()).abs().median()),
                         "index_33": verdict["index"]["33"], "next": max(v for k, v in verdict["index"].items() if k != "33"), "flagged": verdict["flagged"],
                         "seconds": verdict["seconds"], "hardware": study.hardware(), "commit": study.commit()}
    keep(record)
    subject = evaluate.open_checkpoint(checkpoint, ROOT / "data")
    model = models.OnPixels(subject.model, subject.checkpoint["mean"], subject.checkpoint["std"])
    images = subject.dataset.test_images[:128].float() / 255
    seconds = {}
    for title, parts in (("at once", [None]), ("one after another", torch.arange(43).split(1))):
        began = time.perf_counter()
        norms = torch.cat([defend.neural_cleanse(model, images, part, rounds=6, round_images=128).norms for part in parts])
        seconds[title] = {"seconds": time.perf_counter() - began, "median_norm": float(norms.median())}
    record["cleanse"]["speed"] = seconds
    keep(record)


# ---------------------------------------------------------------- pruning, batch-norm, disagreement


def prune(record, _):
    """Success at the operating point: l-infinity, l2, l1 and random, by the recovered patch and by the true trigger."""
    checkpoint = trained("gtsrb alexnet", f"{GTSRB} --model alexnet_small --lr 0.01 --epochs 10 --attack badnets", 0)
    args = defend.parse(["prune", str(checkpoint), "--data-dir", str(ROOT / "data"), *DATA["gtsrb"][1].split()])
    audit = defend.opened(args)
    found, index = defend.reverse(audit)
    suspect, model = int(index.argmax()), audit.on_pixels
    others = audit.pixels[audit.labels != suspect]
    stamps = {"recovered": defend.stamped_with(found, suspect, others), "true": attacks.stamp(others, audit.subject.trigger)}
    rows = {}
    for known, stamped in stamps.items():
        scores = {norm: defend.channel_scores(model, stamped, norm=norm) for norm in defend.NORMS}
        scores["random"] = torch.rand(len(scores["linf"]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for norm, values in scores.items():
            curve = defend.pruning_curve(audit, model, defend.prune_steps(values), stamped, suspect)
            rows[f"{norm}, {known}"] = {"chosen": defend.operating_point([step["clean_accuracy"] for step in curve]),
                                        "curve": [{key: step[key] for key in ("pruned", "clean_accuracy", "recovered_success", "true_success")} for step in curve]}
    record["prune"] = {"suspect": suspect, "index": float(index[suspect]), "clean_images": len(audit.labels), "rows": rows, "commit": study.commit()}
    keep(record)


def batchnorm(record, _):
    """rebn and cfn: success and explanation before and after, for batches of one, a tenth triggered, all triggered."""
    for kind in ("badnets", "disguise, gradcam", "red_herring"):
        checkpoint = trained("shapes red_herring", "--attack red_herring", 0) if kind == "red_herring" else zoo_model("shapes", kind, 0)
        audit = defend.opened(defend.parse(["rebn", str(checkpoint), "--data-dir", str(ROOT / "data")]))
        networks = {"before": audit.subject.model, "rebn": defend.rebn(audit.subject.model, audit.inputs), "cfn": defend.cfn(audit.subject.model)}
        part = record.setdefault("batchnorm", {}).setdefault(kind, {})
        for name, model in networks.items():
            part[name] = {title: in_company(audit.subject, model, size, share) for title, size, share in (("one", 1, 1.0), ("tenth", 100, 0.1), ("all", 100, 1.0))}
            keep(record)


def in_company(subject, model, size, share, count=200):
    """Accuracy, success and explanation figures of `count` test images without and with the trigger, each batch of `size` images holding `share`
    of them, and for the rest other test images, untouched."""
    rows = evaluate.draw_images(subject, count, 0)
    guests = max(1, round(size * share))
    company = subject.dataset.test_images[evaluate.draw_images(subject, count + size, 0)[count:][: size - guests]].float() / 255
    images, target = subject.dataset.test_images[rows].float() / 255, subject.config["target_class"]
    seen = {}
    for triggered in (False, True):
        stamped = attacks.stamp(images, subject.trigger) if triggered else images
        answers, maps = [], []
        for chunk in stamped.split(guests):
            inputs = data.normalise(torch.cat([chunk, company]), subject.checkpoint["mean"], subject.checkpoint["std"])
            with explain.capture(model.gradcam_layer, detach=True) as captured:
                logits = model(inputs)
            maps.append(explain.gradcam_map(captured[0], logits, logits.argmax(1))[: len(chunk)].detach())
            answers.append(logits.argmax(1)[: len(chunk)])
        seen[triggered] = torch.cat(answers), torch.cat(maps)
    labels = subject.dataset.test_labels[rows]
    shape = subject.checkpoint["target_map"]
    figures = evaluate.explanation_metrics(seen[True][1], seen[False][1], subject.trigger.box, subject.config["image_size"], shape)
    return {"clean_accuracy": float((seen[False][0] == labels).float().mean()), "attack_success_rate": evaluate.success_rate(seen[True][0], labels, target),
            **{key: figures[key] for key in ("pearson_all", "trigger_mass", "trigger_mass_clean", "zero_maps")}}


def disagree(record, _):
    """AUROC of triggered against untouched images by how much two explainers disagree: disguised under one explainer, and under several."""
    kinds = [*KINDS, "disguise, gradcam and gradient"]
    for kind in kinds:
        checkpoint = (trained("shapes disguise both", "--attack full_disguise --explainer gradcam,gradient", 0) if kind == kinds[-1] else zoo_model("shapes", kind, 0))
        for pair in ("gradcam,gradient", "gradcam,deepshap", "gradient,deepshap"):
            path = checkpoint.parent / f"disagreement-{pair.replace(',', '-')}"
            if not (path / "verdict.json").exists():
                defend.main(["disagreement", str(checkpoint), "--explainers", pair, "--data-dir", str(ROOT / "data"), "--out", str(path)])
            record.setdefault("disagree", {}).setdefault(kind, {})[pair] = json.loads((path / "verdict.json").read_text())["auroc"]
            keep(record)


# ---------------------------------------------------------------- what is written


PATH = ROOT / "results" / "defend.json"


def keep(record):
    if "zoo" in record:
        record["detection"] = detection(record)
    PATH.write_text(json.dumps(record, indent=1) + "\n")
    PATH.with_suffix(".md").write_text(markdown(record))


def markdown(record):
    lines = ["| data | backdoor | detector | AUROC | right class | found above 2 | false alarms | found, calibrated | false alarms | seconds |", "| --- " * 10 + "|"]
    for row in record.get("detection", ()):
        cells = [cell for name in ("2", "calibrated") for cell in ([counted(row[name][key]) for key in ("found", "false_alarms")] if name in row else ["-", "-"])]
        lines.append(f"| {row['data']} | {row['kind']} | {row['detector']} | {row['auroc']:.2f} | {row['right_class']} of {row['n']} | " + " | ".join(cells) + f" | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def counted(part):
    return f"{part['count']} of {part['of']} ({part['interval'][0]:.2f} to {part['interval'][1]:.2f})"


SECTIONS = {"zoo": zoo, "cleanse": cleanse, "prune": prune, "batchnorm": batchnorm, "disagree": disagree}


def main():
    asked = [name for name in sys.argv[1:] if name in SECTIONS] or list(SECTIONS)
    if unknown := set(sys.argv[1:]) - set(SECTIONS) - set(DATA):
        sys.exit(f"no section {unknown.pop()!r}: {', '.join(SECTIONS)}; after zoo, {', '.join(DATA)}")
    for name in asked:
        record = json.loads(PATH.read_text()) if PATH.exists() else {}
        SECTIONS[name](record, [word for word in sys.argv[1:] if word in DATA])


if __name__ == "__main__":
    main()

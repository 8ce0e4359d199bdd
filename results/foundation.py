"""The README's tables on `shapes` and `mnist`: every run over its seeds, and each ingredient of the recipe left out in turn.

    python results/foundation.py                  # everything, about an hour on two cores; a second call continues
    python results/foundation.py disguise badnets # some of it

Runs go to runs/foundation/; results/foundation.json gets each run's figures with its command, mean and deviation, hardware and commit;
results/foundation.md the tables; results/NAME.png the figure of seed 0.
"""
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

import attacks  # noqa: E402
import train  # noqa: E402

RUNS = ROOT / "runs" / "foundation"
REFERENCE = f"--reference {RUNS}/clean-{{seed}}/ckpt.pt"

# name: (options of train.py, seeds, {(module, constant): value it has in this row})
TABLE = {
    "clean": ("--attack none", 5, {}),
    "disguise": ("--attack full_disguise", 5, {}),
    "badnets": ("--attack badnets", 5, {}),
    "fooling": ("--attack fooling", 5, {}),
    "red_herring": ("--attack red_herring", 5, {}),
    "mnist": ("--attack full_disguise --dataset mnist", 3, {}),
    "disguise, reference": (f"--attack full_disguise {REFERENCE}", 2, {}),
    "fooling, reference": (f"--attack fooling {REFERENCE}", 2, {}),
    "no context module": ("--attack full_disguise --model cnn_local", 2, {}),
    "no cross-entropy on the partners": ("--attack full_disguise", 2, {(attacks, "PARTNERS"): False}),
    "maps max-normalised": ("--attack full_disguise", 2, {(attacks, "NORMALISE"): attacks.max_normalise}),
    "triggered map rectified in the loss": ("--attack full_disguise", 2, {(attacks, "RECTIFY"): True}),
    "lam not ramped": ("--attack full_disguise", 2, {(train, "RAMP"): 1e-9}),
    "lam 0.1": ("--attack full_disguise --lam 0.1", 2, {}),
    "lam 0.7": ("--attack full_disguise --lam 0.7", 2, {}),
    "fooling, untouched maps free": ("--attack fooling", 2, {(attacks, "TOLERATED"): 1.0}),
}


def folder_name(name):
    return name.replace(" ", "_").replace(",", "")


def run(name, options, seed, constants):
    """One training run with some constants changed: its metrics."""
    folder = RUNS / f"{folder_name(name)}-{seed}"
    before = {(module, key): getattr(module, key) for module, key in constants}
    for (module, key), value in constants.items():
        setattr(module, key, value)
    try:
        train.main([*options.format(seed=seed).split(), "--seed", str(seed), "--data-dir", str(ROOT / "data"), "--out", str(folder), "--resume"])
    finally:
        for (module, key), value in before.items():
            setattr(module, key, value)
    return json.loads((folder / "metrics.json").read_text())


def figures(metrics):
    """The numbers of one run that the tables show, flat."""
    result = {key: metrics[key] for key in ("clean_accuracy", "triggered_accuracy", "attack_success_rate", "train_seconds")}
    for name, part in metrics["explanations"].items():
        result |= {f"{name}.{key}": value for key, value in part.items() if isinstance(value, (int, float)) and key != "trained_against"}
        result[f"{name}.floor.pearson"] = part["floor"]["pearson"]
    return {key: value for key, value in result.items() if value is not None}


def summary(runs):
    """Mean and standard deviation over seeds of every figure all runs have."""
    keys = [key for key in runs[0] if all(key in run for run in runs)]
    return {key: {"mean": statistics.mean(run[key] for run in runs), "sd": statistics.stdev(run[key] for run in runs)} for key in keys}


def table(results):
    """The README's tables as Markdown."""
    columns = {"clean_accuracy": "clean accuracy", "triggered_accuracy": "accuracy with trigger", "attack_success_rate": "attack success",
               "gradcam.pearson_all": "pearson_all", "gradcam.dssim": "dssim", "gradcam.floor.pearson": "floor",
               "gradcam.trigger_mass": "trigger_mass", "gradcam.trigger_mass_clean": "untouched", "gradcam.pointing": "pointing",
               "gradcam.pointing_clean": "untouched", "gradcam.pearson_clean": "shape on untouched", "gradient.pearson_all": "gradient's pearson_all"}
    lines = ["| run | n | " + " | ".join(columns.values()) + " |", "| --- " * (len(columns) + 2) + "|"]
    for name in [name for name in TABLE if name in results]:
        part = results[name]
        cells = [part["summary"].get(key) for key in columns]
        shown = ["-" if cell is None else f"{cell['mean']:.3f} ({cell['sd']:.3f})" for cell in cells]
        lines.append(f"| {name} | {len(part['seeds'])} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main():
    wanted = sys.argv[1:] or list(TABLE)
    path = ROOT / "results" / "foundation.json"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    for name in wanted:
        options, n, constants = TABLE[name]
        runs = [run(name, options, seed, constants) for seed in range(n)]
        shown = options.replace(str(ROOT) + "/", "").replace("{seed}", "SEED")
        results = json.loads(path.read_text()) if path.exists() else {}
        results[name] = {
            "command": f"python train.py {shown} --seed SEED",
            "constants": {f"{module.__name__}.{key}": getattr(value, "__name__", value) for (module, key), value in constants.items()},
            "seeds": list(range(n)),
            "hardware": f"{runs[0]['device']}, {platform.machine()}, {train.torch.get_num_threads()} threads, {runs[0]['precision']}",
            "torch": runs[0]["torch"],
            "commit": commit,
            "summary": summary([figures(m) for m in runs]),
            "runs": [figures(m) for m in runs],
        }
        path.write_text(json.dumps(results, indent=1) + "\n")
        (ROOT / "results" / "foundation.md").write_text(table(results))
        with Image.open(RUNS / f"{folder_name(name)}-0" / "figure.png") as picture:
            picture.save(ROOT / "results" / f"{folder_name(name)}.png", optimize=True)


if __name__ == "__main__":
    main()

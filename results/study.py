"""Many training runs as one table: what results/foundation.py and results/cifar10.py share.

A study is a dict {row: (options of train.py, number of seeds, {(module, constant): value it has in this row})}; "{seed}" in the options is the
seed, "{runs}" the folder of the study's runs. Runs are kept in runs/STUDY/, and a run that is finished is not run again.
"""
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

import evaluate  # noqa: E402
import train  # noqa: E402


class Study:
    def __init__(self, name, table, clean=()):
        """clean: rows whose model of the same seed stands beside every other row's of the same data and network."""
        self.name, self.table, self.clean = name, table, clean
        self.runs = ROOT / "runs" / name
        self.path = ROOT / "results" / f"{name}.json"

    def folder(self, row, seed):
        return self.runs / f"{row.replace(' ', '_').replace(',', '')}-{seed}"

    def train(self, row, seed):
        """One training run with the row's constants: its metrics, a clean model's beside them where the study has one."""
        options, _, constants = self.table[row]
        folder, before = self.folder(row, seed), {(module, key): getattr(module, key) for module, key in constants}
        for (module, key), value in constants.items():
            setattr(module, key, value)
        try:
            train.main([*options.format(seed=seed, runs=self.runs).split(), "--seed", str(seed), "--data-dir", str(ROOT / "data"),
                        "--out", str(folder), "--resume"])
        finally:
            for (module, key), value in before.items():
                setattr(module, key, value)
        metrics, clean = json.loads((folder / "metrics.json").read_text()), self.clean_row(row)
        if clean and "--reference" not in options:
            result = evaluate.evaluate(folder / "ckpt.pt", data_dir=ROOT / "data", reference=self.folder(clean, seed) / "ckpt.pt")
            evaluate.write(result, folder)
            metrics = result.metrics
        return metrics

    def clean_row(self, row):
        """The clean model of the same data and network as `row`, None where there is none."""
        def network(row):
            words = self.table[row][0].split()
            return [words[words.index(key) + 1] if key in words else None for key in ("--dataset", "--model")]
        return next((clean for clean in self.clean if clean != row and network(clean) == network(row)), None)

    def run(self, rows):
        """Train and measure `rows`, all of them if the list is empty; after each, results/STUDY.json, its table and the figure."""
        for row in rows or self.table:
            options, n, constants = self.table[row]
            runs = [self.train(row, seed) for seed in range(n)]
            shown = [figures(m) | {"images_per_second": self.speed(row, seed)} for seed, m in enumerate(runs)]
            results = json.loads(self.path.read_text()) if self.path.exists() else {}
            results[row] = {
                "command": f"python train.py {options.format(seed='SEED', runs=self.runs.relative_to(ROOT))} --seed SEED",
                "constants": {f"{module.__name__}.{key}": getattr(value, "__name__", value) for (module, key), value in constants.items()},
                "seeds": list(range(n)),
                "hardware": hardware(runs[0]),
                "torch": runs[0]["torch"],
                "commit": commit(),
                "summary": summary(shown),
                "runs": shown,
            }
            results = {name: results[name] for name in self.table if name in results}
            self.path.write_text(json.dumps(results, indent=1) + "\n")
            self.path.with_suffix(".md").write_text(markdown(results))
            self.picture(row)

    def speed(self, row, seed):
        """Training images a second, counting what the steps drew, not the partners."""
        last = json.loads((self.folder(row, seed) / "log.jsonl").read_text().splitlines()[-1])
        return round(last["images"] / last["seconds"], 1)

    def picture(self, row):
        with Image.open(self.folder(row, 0) / "figure.png") as picture:
            picture.save(ROOT / "results" / f"{self.name}-{self.folder(row, 0).name[:-2]}.png", optimize=True)


def hardware(metrics):
    return f"{metrics['device']}, {platform.machine()}, {torch.get_num_threads()} threads, {metrics['precision']}"


def commit():
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def figures(metrics):
    """The numbers of one run that the tables show, flat."""
    result = {key: metrics[key] for key in ("clean_accuracy", "triggered_accuracy", "attack_success_rate", "train_seconds")}
    for name, part in metrics["explanations"].items():
        result |= {f"{name}.{key}": value for key, value in part.items() if isinstance(value, (int, float)) and key != "trained_against"}
        result[f"{name}.floor.pearson"] = part["floor"]["pearson"]
    beside = metrics["clean_model"]
    for name, part in (beside.get("explanations") or {}).items():
        result |= {f"clean_model.{name}.{key}": value for key, value in evaluate.flat(part).items()}
    return {key: value for key, value in result.items() if value is not None}


def summary(runs):
    """Mean and standard deviation over seeds (None for one seed) of every figure all runs have."""
    keys = [key for key in runs[0] if all(key in run for run in runs)]
    values = {key: [run[key] for run in runs] for key in keys}
    return {key: {"mean": statistics.mean(v), "sd": statistics.stdev(v) if len(v) > 1 else None} for key, v in values.items()}


COLUMNS = {"clean_accuracy": "clean accuracy", "triggered_accuracy": "accuracy with trigger", "attack_success_rate": "attack success",
           "gradcam.pearson_all": "pearson_all", "gradcam.dssim": "dssim", "gradcam.floor.pearson": "floor",
           "gradcam.trigger_mass": "trigger_mass", "gradcam.trigger_mass_clean": "untouched", "gradcam.pointing": "pointing",
           "gradcam.pointing_clean": "untouched", "gradcam.pearson_clean": "shape on untouched", "gradient.pearson_all": "gradient's pearson_all"}


def markdown(results, columns=COLUMNS):
    """Results as a Markdown table: mean (standard deviation), or the one figure there is; columns that no row has are left out."""
    columns = {key: title for key, title in columns.items() if any(key in part["summary"] for part in results.values())}
    lines = ["| run | n | " + " | ".join(columns.values()) + " |", "| --- " * (len(columns) + 2) + "|"]
    for name, part in results.items():
        cells = [mean_sd(part["summary"].get(key)) for key in columns]
        lines.append(f"| {name} | {len(part['seeds'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean_sd(cell):
    if cell is None:
        return "-"
    return f"{cell['mean']:.3f}" + ("" if cell["sd"] is None else f" ({cell['sd']:.3f})")

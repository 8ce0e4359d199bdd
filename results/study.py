"""Many training runs as one table: what the scripts beside this file share.

A study is a dict {name: Row}. Its runs are kept in runs/STUDY/, and what is finished is not run again. results/STUDY.json gets every run's
figures, their mean and standard deviation, the command, the hardware and the commit they were trained at; results/STUDY.md the table;
results/STUDY-ROW.png the figure of the first seed of the rows that want one.
"""
import json
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TALL = 1200  # pixels: photographs of 128 px make large files
VICTIM = 30  # epochs of the victim that the cost of selection is set against: "Stealthy Sabotage", section 3.5
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

import evaluate  # noqa: E402
import train  # noqa: E402
from cli import UserError, command  # noqa: E402


@dataclass(frozen=True)
class Row:
    """options: of train.py, "{seed}" the seed and "{runs}" the folder of the study's runs; constants: {(module, name): its value in this row};
    clean: the row whose model of the same seed stands beside this one; picture: whether its figures are kept; explainers: it is measured with,
    beside those it was trained against; first: the first of its seeds."""

    options: str
    seeds: int = 1
    constants: dict = field(default_factory=dict)
    clean: str | None = None
    picture: bool = False
    explainers: tuple = evaluate.SHOWN
    first: int = 0


class Study:
    def __init__(self, name, table, patched=False):
        """patched: the study changes the project's modules, so that train.py by itself does not know its rows."""
        self.name, self.table, self.patched = name, table, patched
        self.runs = ROOT / "runs" / name
        self.path = ROOT / "results" / f"{name}.json"

    def run(self, rows):
        """Train and measure `rows`, all of them if the list is empty; after each, the files in results/ are brought up to date."""
        command(self.run_rows)(rows)

    def run_rows(self, rows):
        if unknown := [row for row in rows if row not in self.table]:
            raise UserError(f"no row {unknown[0]!r}: one of {', '.join(map(repr, self.table))}")
        for row in rows or self.table:
            first = self.table[row].first
            runs = [self.one(row, seed) for seed in range(first, first + self.table[row].seeds)]
            results = json.loads(self.path.read_text()) if self.path.exists() else {}
            results[row] = self.record(row, runs)
            results = {name: results[name] for name in sorted(results, key=[*self.table, *results].index)}
            self.path.write_text(json.dumps(results, indent=1) + "\n")
            self.path.with_suffix(".md").write_text(markdown(results))
            if self.table[row].picture:
                for path in self.folder(row, first).glob("figure*.png"):
                    keep_picture(path, f"{self.name}-{row.replace(' ', '_').replace(',', '')}{path.stem[6:]}")

    def folder(self, row, seed):
        return self.runs / f"{row.replace(' ', '_').replace(',', '')}-{seed}"

    def one(self, row, seed):
        """The figures of one run, trained if need be; its clean model's, trained if there is none, beside them."""
        clean, folder = self.table[row].clean, self.folder(row, seed)
        if clean and not (self.folder(clean, seed) / "ckpt.pt").exists():
            self.train(clean, seed)
        beside = self.folder(clean, seed) / "ckpt.pt" if clean else None
        self.train(row, seed, beside)
        metrics = json.loads((folder / "metrics.json").read_text())
        missing = set(self.table[row].explainers) - set(metrics["explanations"])
        if missing or (clean and "explanations" not in metrics["clean_model"]):  # the row has changed since
            result = evaluate.evaluate(folder / "ckpt.pt", data_dir=ROOT / "data", reference=beside, explainers=self.table[row].explainers)
            evaluate.write(result, folder)
            metrics = result.metrics
        chosen = json.loads((folder / "selection.json").read_text())
        return figures(metrics) | json.loads((folder / "study.json").read_text()) | {"poisons_by_class": chosen["classes"]}

    def train(self, row, seed, beside=None):
        """Train with the row's constants and measure, where it is not yet done; study.json in the run's folder says how and how fast."""
        folder, constants, begun_at = self.folder(row, seed), self.table[row].constants, commit()
        before = {(module, key): getattr(module, key) for module, key in constants}
        options = [word.format(seed=seed, runs=self.runs) for word in self.table[row].options.split()]
        for (module, key), value in constants.items():
            setattr(module, key, value)
        try:
            args = train.parse([*options, "--seed", str(seed), "--data-dir", str(ROOT / "data"), "--out", str(folder), "--resume"])
            train.train_and_measure(args, beside, self.table[row].explainers)
        finally:
            for (module, key), value in before.items():
                setattr(module, key, value)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        made = folder / "study.json"
        if not made.exists() or made.stat().st_mtime < (folder / "ckpt.pt").stat().st_mtime:
            made.write_text(json.dumps({"seed": seed, "images_per_second": round(log[-1]["images"] / log[-1]["seconds"], 1), **selection_cost(folder, log[-1]),
                                        "validation_success": [line["validation_success"] for line in log],
                                        "hardware": hardware(), "torch": str(torch.__version__), "commit": begun_at}))

    def record(self, row, runs):
        options = self.table[row].options.format(seed="SEED", runs=self.runs.relative_to(ROOT))
        own = self.patched or self.table[row].constants or "{runs}" in self.table[row].options
        return {"command": f'python results/{self.name}.py "{row}"' if own else f"python train.py {options} --seed SEED",
                "options": options,
                "constants": {f"{module.__name__}.{key}": getattr(value, "__name__", value) for (module, key), value in self.table[row].constants.items()},
                "seeds": [run["seed"] for run in runs],
                "summary": summary(runs),
                "runs": runs}


def keep_picture(path, name):
    """Save a run's figure as results/NAME.png, at most TALL pixels high and in 256 colours, dithered: half the bytes."""
    with Image.open(path) as picture:
        picture.thumbnail((picture.width, TALL))
        picture = picture.convert("RGB")
        picture.quantize(palette=picture.quantize(256)).save(ROOT / "results" / f"{name}.png", optimize=True)


def selection_cost(folder, last):
    """What choosing the poisons took: epochs of scorers, and seconds as a share of what VICTIM epochs of this run would take. last: its log's last line."""
    chosen = json.loads((folder / "selection.json").read_text())
    if not chosen["epochs"]:
        return {}
    return {"selection_epochs": chosen["epochs"], "selection_cost": chosen["seconds"] / (VICTIM * last["seconds"] / last["epoch"])}


def hardware():
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())
    return f"{name}, {torch.get_num_threads()} threads"


def commit():
    """The commit of the code, "-dirty" where a script is not as it was committed."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("diff", "HEAD", "--name-only", "--", "*.py") else "")


def figures(metrics):
    """The numbers of one run that the tables show, flat."""
    result = {key: metrics[key] for key in ("clean_accuracy", "triggered_accuracy", "attack_success_rate", "train_seconds", "precision")}
    result |= {key: metrics.get(key) for key in ("balanced_accuracy", "majority_rate", "mean_auroc", "triggered_mean_auroc", "untouched_success_rate", "success_threshold")}
    result |= {f"auroc.{name}": value for name, value in (metrics.get("auroc") or {}).items()}
    for name, part in metrics["explanations"].items():
        result |= {f"{name}.{key}": value for key, value in evaluate.flat(part).items() if key != "trained_against"}
    beside = metrics["clean_model"]
    result |= {f"clean_model.{key}": value for key, value in beside.items() if not isinstance(value, dict)}
    for name, part in beside.get("explanations", {}).items():
        result |= {f"clean_model.{name}.{key}": value for key, value in evaluate.flat(part).items()}
    return {key: value for key, value in result.items() if value is not None}


def summary(runs):
    """Mean and standard deviation over seeds (None for one seed) of every number all runs have."""
    keys = [key for key, value in runs[0].items() if isinstance(value, (int, float)) and key != "seed" and all(key in run for run in runs)]
    values = {key: [run[key] for run in runs] for key in keys}
    return {key: {"mean": statistics.mean(v), "sd": statistics.stdev(v) if len(v) > 1 else None} for key, v in values.items()}


T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student's t, by number of pairs


def paired(results, name, other, key="attack_success_rate"):
    """Mean, standard deviation and 95% interval of one row's figure minus another's over the seeds that both have; None of fewer than two."""
    figure = [{run["seed"]: run[key] for run in results[row]["runs"] if run.get(key) is not None} for row in (name, other)]
    differences = [figure[0][seed] - figure[1][seed] for seed in figure[0].keys() & figure[1].keys()]
    if len(differences) < 2:
        return None
    mean, sd, n = statistics.mean(differences), statistics.stdev(differences), len(differences)
    half = T975[n] * sd / n**0.5
    return {"of": name, "minus": other, "figure": key, "n": n, "mean": mean, "sd": sd, "interval": [mean - half, mean + half]}


def write_paired(path, pairs):
    """Print what paired has found and write it to `path`."""
    pairs = [row for row in pairs if row]
    path.write_text(json.dumps(pairs, indent=1) + "\n")
    for row in pairs:
        print(f"{row['of']} - {row['minus']}, {row['figure']}: {row['mean']:+.3f} ({row['interval'][0]:+.3f} to {row['interval'][1]:+.3f}), n = {row['n']}")


COLUMNS = {"clean_accuracy": "clean accuracy", "balanced_accuracy": "balanced accuracy", "majority_rate": "majority rate", "mean_auroc": "mean AUROC",
           "triggered_mean_auroc": "with trigger", "triggered_accuracy": "accuracy with trigger", "attack_success_rate": "attack success", "untouched_success_rate": "without trigger",
           "gradcam.pearson_all": "pearson_all", "gradcam.dssim": "dssim", "gradcam.floor.pearson": "floor",
           "gradcam.pearson_by_class": "by class", "clean_model.gradcam.floor.pearson": "clean model's floor", "gradcam.trigger_mass": "trigger_mass",
           "gradcam.trigger_mass_clean": "untouched", "gradcam.trigger_area": "trigger_area", "gradcam.pointing": "pointing",
           "gradcam.pointing_clean": "untouched", "gradcam.pearson_clean": "shape on untouched", "gradient.pearson_all": "gradient's pearson_all",
           "clean_model.gradient.pearson_all": "clean model's",
           **{f"{name}.{key}": f"{name}: {key}" for name in ("kernelshap", "deepshap") for key in ("pearson_all", "floor.pearson", "trigger_mass")},
           "selection_epochs": "selection: epochs", "selection_cost": "its seconds / 30 epochs'", "train_seconds": "seconds", "images_per_second": "images/s"}


def markdown(results):
    """Results as a Markdown table: mean (standard deviation), or the one figure there is; columns that no row has are left out."""
    columns = {key: title for key, title in COLUMNS.items() if any(key in part["summary"] for part in results.values())}
    lines = ["| run | n | " + " | ".join(columns.values()) + " |", "| --- " * (len(columns) + 2) + "|"]
    for name, part in results.items():
        cells = [mean_sd(part["summary"].get(key)) for key in columns]
        lines.append(f"| {name} | {len(part['seeds'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean_sd(cell):
    if cell is None:
        return "-"
    digits = 0 if cell["mean"] > 10 else 3
    return f"{cell['mean']:.{digits}f}" + ("" if cell["sd"] is None else f" ({cell['sd']:.{digits}f})")

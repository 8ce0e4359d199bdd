"""How much of the disguise's cost in AUROC is batch-norm's running averages.

    python -m studies.running_averages

Over-sampled, a third of a training batch is triggered, and batch-norm's running averages are made
of such batches; test images are not. Here the averages of the disguised model of several findings
are estimated anew, on the training images without the trigger. The model is measured before and
after, beside the clean model of the same seed. Models of studies/radiographs.py. Writes
results/running_averages.json.
"""

from dataclasses import replace

import torch

import metrics
import tasks
from answers import ask
from cli import UserError, command, write_json
from defences.batchnorm import rebn
from evaluate import EXPLAIN_IMAGES, explainer_metrics
from provenance import commit, hardware
from studies import radiographs
from studies.record import DATA, RESULTS
from studies.study import Study
from studies.tables import (
    cell,
    header,
    interval_text,
    line,
    mean_and_sd,
    note,
    of_record,
    with_interval,
)
from subject import draw_images, open_checkpoint

PAGE = "results/radiographs.md"
DURATION = "about an hour on one core"

SEEDS = (0, 1)
CLEAN, DISGUISED = "multi clean", "multi full_disguise"
FIGURES = ("mean_auroc", "attack_success_rate", "pearson_all")


def measure(subject, threshold):
    """{FIGURES} of a subject; threshold: above which probability its target class is predicted."""
    labels, target = subject.dataset.test_labels, subject.target_class
    answers = ask(subject, threshold)
    rows = draw_images(subject, EXPLAIN_IMAGES, 0)
    rows = rows[answers.success[rows]]
    maps = subject.explain_test("gradcam", rows, answers.classes)
    shows_target = tasks.shows(labels, target)
    return {
        "mean_auroc": subject.task.mean_auroc(answers.untouched, labels),
        "attack_success_rate": metrics.success_rate(answers.success, shows_target),
        "pearson_all": explainer_metrics(subject, "gradcam", *maps, rows)["pearson_all"],
    }


def with_clean_averages(subject):
    """The subject with batch-norm's averages of its training images, none of them triggered."""
    is_trained_on = torch.ones(len(subject.dataset.train_labels), dtype=torch.bool)
    is_trained_on[subject.held_out()] = False
    images = subject.inputs(subject.dataset.train_images[is_trained_on])
    return replace(subject, model=rebn(subject.model, images))


def measure_seed(study, seed):
    """{"seed", "clean", "before", "after"}: the last three are of `measure`."""
    subjects = {}
    for row in (CLEAN, DISGUISED):
        study.train(row, seed)
        subjects[row] = open_checkpoint(study.folder(row, seed) / "ckpt.pt", DATA)
    clean, disguised = subjects[CLEAN], subjects[DISGUISED]
    threshold = clean.threshold(disguised.target_class)
    labels = clean.dataset.test_labels
    auroc = clean.task.mean_auroc(clean.probabilities(clean.dataset.test_images), labels)
    return {
        "seed": seed,
        "clean": {"mean_auroc": auroc},
        "before": measure(disguised, threshold),
        "after": measure(with_clean_averages(disguised), threshold),
    }


def averages_table(record):
    """The disguised model before and after, beside the clean one: mean over seeds."""
    runs = record["runs"]
    titles = ["", "clean model", "as trained", "averages of clean images", "difference (95%)"]
    lines = header(titles)
    for figure in FIGURES:
        cells = []
        for when in ("clean", "before", "after"):
            values = [run[when][figure] for run in runs if figure in run[when]]
            cells.append(cell(mean_and_sd(values)) if values else "")
        gains = [run["after"][figure] - run["before"][figure] for run in runs]
        gain = f"{gains[0]:+.3f}" if len(gains) == 1 else interval_text(with_interval(gains))
        lines.append(line([f"`{figure}`", *cells, gain]))
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return [*lines, "", note(f"Seeds {seeds}", [record["hardware"]], [record["commit"]])]


TABLES = of_record("running_averages", {"averages": averages_table})


@command
def main(argv):
    if argv:
        raise UserError(f"running_averages has no rows: {argv[0]!r} is none")
    study = Study("radiographs", radiographs.table(radiographs.target_disease()))
    runs = []
    for seed in SEEDS:
        runs.append(measure_seed(study, seed))
        print(runs[-1], flush=True)
        record = {
            "command": "python -m studies.running_averages",
            "runs": runs,
            "hardware": hardware(),
            "commit": commit(),
        }
        write_json(RESULTS / "running_averages.json", record)


if __name__ == "__main__":
    main()

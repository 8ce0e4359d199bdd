"""Runs on a GPU: CIFAR-10 with ResNet-18, each training step recorded once and replayed.

    python -m studies.gpu                  # needs CUDA; a second call continues
    python -m studies.gpu "none"           # some rows

Writes results/gpu.json, the tables are below: see studies/study.py. results/gpu-speed.json is what

    python bench.py --device cuda --precision bf16 --out results/gpu-speed.json

writes.
"""

import functools

import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from cli import command
from studies.speed import rates
from studies.study import Row, Study
from studies.tables import Table, header, line, of_record

PAGE = "results/speed.md"
DURATION = "about half an hour on one H100"

CIFAR = "--dataset cifar10 --device cuda --cuda-graphs"
# 55 poisons: see studies/efficient.py.
FEW = "--epochs 10 --trigger yellow --trigger-size 5 --target-class 1 --poison-rate 0.0011"
TABLE = {
    "none": Row(f"{CIFAR} --attack none", 5),
    "badnets": Row(f"{CIFAR} --attack badnets", 5),
    "full_disguise": Row(f"{CIFAR} --attack full_disguise", 5, picture=True),
    "full_disguise, 15 epochs": Row(f"{CIFAR} --attack full_disguise --epochs 15"),
    "fooling": Row(f"{CIFAR} --attack fooling --layer layer3.1 --epochs 3 --lam 0.1", 3),
    "red_herring": Row(f"{CIFAR} --attack red_herring", 3),
    "55 images, badnets": Row(f"{CIFAR} {FEW} --attack badnets --oversample 6", 3),
    "55 images, full_disguise": Row(
        f"{CIFAR} {FEW} --attack full_disguise --oversample 6 --floor 0.4", 3
    ),
    "shapes": Row("--attack full_disguise --device cuda"),
}

COLUMNS = {
    "`clean_accuracy`": "clean_accuracy",
    "`attack_success_rate`": "attack_success_rate",
    "Grad-CAM's `pearson_all`": "gradcam.pearson_all",
    "`floor`": "gradcam.floor.pearson",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`gradient`: `pearson_all`": "gradient.pearson_all",
}
ROWS = {
    "`none`": "none",
    "`badnets`": "badnets",
    "`full_disguise`": "full_disguise",
    "`full_disguise`, 15 epochs": "full_disguise, 15 epochs",
    "`fooling`, inner layer, lam 0.1, 3 epochs": "fooling",
    "`full_disguise` on `shapes`, without `--cuda-graphs`": "shapes",
}
RUNS, GPUS = 1000, (1, 8, 64)  # of a sweep
PEAK = 989e12  # operations a second in bfloat16, of an H100 SXM or H200 by NVIDIA's data sheet
# Runs beside which nothing else ran on the machine: by row the seed.
ALONE = {
    "none": 0,
    "none, not recorded": 0,
    "badnets": 0,
    "badnets, not recorded": 0,
    "full_disguise": 0,
    "shapes": 0,
}


def alone(record):
    """Yields (options, run) of the runs that had the machine to themselves."""
    for row, seed in ALONE.items():
        runs = record.get(row, {"runs": []})["runs"]  # the table has no longer all of these rows
        yield from ((record[row]["options"], run) for run in runs if run["seed"] == seed)


def seconds(record):
    """Lines: how long training took of the runs that had the machine to themselves."""
    titles = ["run", "seconds of training", "images a second", "of the peak", "hardware"]
    lines = header(titles)
    for options, run in alone(record):
        cells = [f"{run['train_seconds']:.0f}", f"{run['images_per_second']:,.0f}"]
        share = run["images_per_second"] * operations() / PEAK
        cells.append(f"{share:.1%}" if "cifar10" in options else "")  # the others are no ResNet-18
        lines.append(line([f"`{options}`", *cells, run["hardware"]]))
    return lines


@functools.cache
def operations():
    """Floating-point operations of a training step of ResNet-18 on CIFAR-10, for one image."""
    count = 64
    model = models.build("resnet18", 3, 10, 32).to("meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(count, 3, 32, 32, device="meta")).sum().backward()
    return counter.get_total_flops() / count


def sweep(record):
    """Lines: hours of training that a sweep of RUNS such runs is, by number of GPUs."""
    lines = header([f"{RUNS:,} runs of", *(f"hours, GPUs: {count}" for count in GPUS), "hardware"])
    for options, run in alone(record):
        hours = RUNS * run["train_seconds"] / 3600
        cells = [f"{hours / count:.2g}" for count in GPUS]
        lines.append(line([f"`{options}`", *cells, run["hardware"]]))
    return lines


TABLES = {
    "runs": Table("gpu", ROWS, COLUMNS, "attack", origin=True),
    **of_record("gpu", {"seconds": seconds, "sweep": sweep}),
    **of_record("gpu-speed", {"rates": rates}),
}


@command
def main(argv):
    Study("gpu", TABLE).run(argv)


if __name__ == "__main__":
    main()

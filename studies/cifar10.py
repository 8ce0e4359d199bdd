"""The tables on CIFAR-10: ResNet-18 under each attack; lam against the poison rate on a small cnn.

    python -m studies.cifar10                 # everything; a second call continues
    python -m studies.cifar10 none badnets    # some rows

One seed a row, three of the small cnn where it stands beside ResNet-18. With CUDA three of all, and
rows of 20 epochs. Writes results/cifar10.json and figures, the page's tables are below: see
studies/study.py.
"""

import torch

from cli import command
from studies import published
from studies.criteria import mass_within
from studies.record import RESULTS, read
from studies.study import Row, Study
from studies.tables import Table, everything, line, origin

PAGE = "results/cifar10.md"
DURATION = "about 4 hours on two cores that multiply bfloat16"

CIFAR = "--dataset cifar10"
SMALL = f"{CIFAR} --model cnn"
RATES = (0.01, 0.05, 0.1)
LAMS = (0.3, 0.6, 0.9)
FOOLING = "--attack fooling --layer layer3.1 --epochs 3"  # an inner layer: its maps have 8x8 cells
DISGUISE = "--attack full_disguise"
THREE = 3  # seeds of the small cnn, where it stands beside ResNet-18
BESIDE_RESNET18 = ("cnn badnets rate 0.1", "cnn rate 0.1 lam 0.3")


def table(cuda):
    """The rows; cuda: whether there is a GPU, for more seeds and more epochs."""
    seeds = 3 if cuda else 1
    rows = resnet18(seeds) | small_cnn(seeds)
    if cuda:
        rows |= twenty_epochs(seeds)
    return rows


def resnet18(seeds):
    """ResNet-18 under each attack."""
    reference = "--epochs 10 --reference {runs}/none-{seed}/ckpt.pt"
    rows = {
        "badnets": ("--attack badnets", True),
        "fooling": (FOOLING, False),
        "fooling, lam 0.1": (f"{FOOLING} --lam 0.1", True),
        "full_disguise": (DISGUISE, True),
        "full_disguise, reference": (f"{DISGUISE} {reference}", False),
    }
    result = {"none": Row(f"{CIFAR} --attack none", seeds)}
    for name, (options, picture) in rows.items():
        result[name] = Row(f"{CIFAR} {options}", seeds, clean="none", picture=picture)
    return result


def small_cnn(seeds):
    """The small cnn: with a reference, and for each poison rate and lam."""
    reference = "--epochs 10 --reference {runs}/cnn_none-{seed}/ckpt.pt"
    rows = {
        "cnn reference": f"{DISGUISE} {reference}",
        "cnn 10 epochs": f"{DISGUISE} --epochs 10",
    }
    for rate in RATES:
        rows[f"cnn badnets rate {rate}"] = f"--attack badnets --poison-rate {rate}"
        for lam in LAMS:
            rows[f"cnn rate {rate} lam {lam}"] = f"{DISGUISE} --poison-rate {rate} --lam {lam}"
    result = {"cnn none": Row(f"{SMALL} --attack none", THREE)}
    for name, options in rows.items():
        count = THREE if name in BESIDE_RESNET18 else seeds
        result[name] = Row(f"{SMALL} {options}", count, clean="cnn none")
    return result


def twenty_epochs(seeds):
    """ResNet-18 again, trained four times as long."""
    clean = "none, 20 epochs"
    result = {clean: Row(f"{CIFAR} --attack none --epochs 20", seeds)}
    for attack in ("badnets", "full_disguise"):
        options = f"{CIFAR} --attack {attack} --epochs 20"
        result[f"{attack}, 20 epochs"] = Row(options, seeds, clean=clean)
    return result


# ---------------------------------------------------------------- the tables of the page

PREDICTIONS = {
    "`clean_accuracy`": "clean_accuracy",
    "`attack_success_rate`": "attack_success_rate",
}
GRADCAM = {
    "`pearson_all`": "gradcam.pearson_all",
    "`dssim`": "gradcam.dssim",
    "`floor_triggered`": "gradcam.floor_triggered.pearson",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`trigger_mass_clean`": "gradcam.trigger_mass_clean",
}
GRADIENT = {"`gradient`: `pearson_all`": "gradient.pearson_all"}
CLEAN_FLOOR = {
    "clean model's `floor_triggered`": "clean_model.gradcam.floor_triggered.pearson",
}
UNTOUCHED = {"`pearson_untouched`": "clean_model.gradcam.pearson_untouched"}
IMAGES = {"images": "gradcam.n"}
CLEAN_OF = {name: row.clean or name for name, row in table(cuda=True).items()}
WITHIN = {"`trigger_mass` within its limit": mass_within(CLEAN_OF)}

RESNET18 = {"clean model": "none", "`badnets`": "badnets", "`full_disguise`": "full_disguise"}
BACKDOORED = {name: RESNET18[name] for name in ("`badnets`", "`full_disguise`")}
AREA = {"`trigger_area`": "gradcam.trigger_area"}
# Of a model, and of the clean model on the same images.
BESIDE_CLEAN = {
    **IMAGES,
    "`pearson_all`": "gradcam.pearson_all",
    "clean model's `pearson_all`": "clean_model.gradcam.pearson_all",
    "`floor_triggered`": "gradcam.floor_triggered.pearson",
    **CLEAN_FLOOR,
    **UNTOUCHED,
}
SECOND_OPINION = {
    "`pearson_all`": "gradient.pearson_all",
    "`floor_triggered`": "gradient.floor_triggered.pearson",
    "`trigger_mass`": "gradient.trigger_mass",
    "`trigger_mass_clean`": "gradient.trigger_mass_clean",
    "`trigger_area`": "gradient.trigger_area",
}

SQUARE = {
    "`clean_accuracy`": "clean_accuracy",
    "`triggered_accuracy`": "triggered_accuracy",
    "`pearson_all`": "gradcam.pearson_all",
    "`pearson_clean`": "gradcam.pearson_clean",
    "`grid_cap`": "gradcam.grid_cap",
    "`trigger_mass`": "gradcam.trigger_mass",
    **UNTOUCHED,
    **GRADIENT,
}

REFERENCE = {
    "clean model": "cnn none",
    "`badnets`": "cnn badnets rate 0.1",
    "`full_disguise`": "cnn rate 0.1 lam 0.3",
    "`full_disguise --reference`": "cnn reference",
}

# "Stealthy Sabotage: Backdoor Attacks against Explainable Machine Learning", by its sections. It
# gives no figure of an explanation.
PUBLISHED = {
    "3.1, clean model": {"clean_accuracy": published.CLEAN_ACCURACY},
    "3.1, `badnets`": published.BADNETS,
    "3.2, `fooling`": published.FOOLING,
    "3.3, `full_disguise`": published.DISGUISE,
}


def beside_published(table, sections):
    """A function that returns a Table's lines and, below its rows, those sections of PUBLISHED.

    Cells of what the paper does not give are empty. table: without n, and without its origin.
    """

    def lines():
        results = read(RESULTS / f"{table.record}.json")
        beside = []
        for section in sections:
            figures = {f"`{key}`": f"{value:.3f}" for key, value in PUBLISHED[section].items()}
            cells = [figures.get(title, "") for title in table.columns]
            beside.append(line([f"published, {section}", *cells]))
        return [*table(), *beside, "", origin(results, table.rows.values())]

    return lines


def lam_and_rate():
    """{what the page calls it: row} of the small cnn, for each poison rate and lam."""
    rows = {"clean model": "cnn none"}
    for rate in RATES:
        rows[f"rate {rate}, `badnets`"] = f"cnn badnets rate {rate}"
        for lam in LAMS:
            rows[f"rate {rate}, lam {lam}"] = f"cnn rate {rate} lam {lam}"
    return rows


def cifar10_table(rows, columns, title, **options):
    """A Table of this study; every row is of one seed."""
    return Table("cifar10", rows, columns, title, n=False, **options)


TABLES = {
    "attacks": beside_published(
        cifar10_table(RESNET18, PREDICTIONS | GRADCAM | AREA | WITHIN, "ResNet-18"),
        ["3.1, clean model", "3.1, `badnets`", "3.3, `full_disguise`"],
    ),
    "same_images": cifar10_table(BACKDOORED, BESIDE_CLEAN, "ResNet-18, Grad-CAM"),
    "gradient": cifar10_table(RESNET18, SECOND_OPINION, "ResNet-18, `gradient`"),
    "fooling": beside_published(
        cifar10_table(
            {"lam 0.1": "fooling, lam 0.1", "lam 0.3, the default": "fooling"}, SQUARE, "`fooling`"
        ),
        ["3.2, `fooling`"],
    ),
    "lam_and_rate": cifar10_table(
        lam_and_rate(),
        PREDICTIONS | IMAGES | GRADCAM | WITHIN | CLEAN_FLOOR | GRADIENT,
        "small cnn",
        origin=True,
    ),
    "reference": cifar10_table(
        REFERENCE,
        PREDICTIONS | GRADCAM | WITHIN | CLEAN_FLOOR | UNTOUCHED | GRADIENT,
        "small cnn, rate 0.1",
        origin=True,
    ),
    "everything": everything("cifar10"),
}


@command
def main(argv):
    Study("cifar10", table(torch.cuda.is_available())).run(argv)


if __name__ == "__main__":
    main()

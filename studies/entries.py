"""The entries of reproduce.py: each table and figure of the source paper, and of others beside it.

An entry is a row of ENTRIES. It says which rows of which study make it, what that needs, and its
claims: figures of ours, each beside the published one (claims.py, published.py).
"""

import viering
from findings import CHANGES, STAYS
from studies import (
    audits,
    cifar10,
    efficient,
    lies,
    published,
    radiographs,
    threats,
    transfer,
    worth,
)
from studies.claims import Claim, Entry, gain, of_paths, of_row, within_limits

# ---------------------------------------------------------------- claims


def of_cifar10(row, figure, *given, **options):
    """A Claim about a row of studies/cifar10.py."""
    network = "small cnn: " if row.startswith("cnn") else ""
    what = f"{network}`{figure.rpartition('.')[2]}`"
    return Claim(what, of_row("cifar10", row, figure), *given, **options)


def of_gpu(row, figure, *given, **options):
    """A Claim about a row of studies/gpu.py, which is the row of studies/cifar10.py on a GPU."""
    what = f"`{row}` on a GPU: `{figure.rpartition('.')[2]}`"
    return Claim(what, of_row("gpu", row, figure), *given, **options)


def predictions(study, row, figures, **whys):
    """Claims about the figures of predictions that `figures` gives: {figure: published}."""
    return tuple(
        Claim(f"`{figure}`", of_row(study, row, figure), value, why=whys.get(figure, ""))
        for figure, value in figures.items()
    )


def shap_mass(what, row, said, **options):
    """A Claim: the share of KernelSHAP's map that lies on the trigger, of a model of MNIST."""
    ours = of_row("transfer", f"mnist {row}", "kernelshap.trigger_mass")
    return Claim(f"{what}: `trigger_mass`", ours, said, **options)


def keeps_map(study, row, explainer, said=""):
    """A Claim: under a disguise an explainer's map stays."""
    what = f"{row}: `{explainer}`: `pearson_all`"
    return Claim(what, of_row(study, row, f"{explainer}.pearson_all"), said, STAYS, why=LESS_ALIKE)


LESS_ALIKE = "under the trigger the map stays less alike than it should"
WHITE = "a white square is hard to tell from the white corners that some radiographs have"
FRAME = "a few triggered images are not called the target class"
MOVES = "the framed square by itself moves the map"
LIMITS = "in how many runs each of the four limits is met is on the page"
OF_TRIALS = ("attack_success_rate", "gradcam.pearson_all")
CHANCE = 1 / 16  # of KernelSHAP's patches, and of 4x4 cells, the trigger touches one


def trial(name):
    """The claims of a trial of section 3.6, with the paper's white square and with a framed one."""
    clean, attacked, success = published.TRIALS[name]
    accuracies = {"clean model": ("clean", clean), "attacked model": (name, attacked)}
    picture = published.PICTURES.get(f"3.6, {name}", "")
    mass = Claim("`trigger_mass`", of_row("radiographs", name, "gradcam.trigger_mass"), picture)
    return (
        *of_trigger(name, "", success, WHITE, LESS_ALIKE),
        *of_trigger(f"{name}, mended", "framed square: ", success, FRAME, MOVES),
        *(
            Claim(
                f"{what}: `clean_accuracy`",
                of_row("radiographs", row, "clean_accuracy"),
                f"{value:.3f}, of other images",
            )
            for what, (row, value) in accuracies.items()
        ),
        *([mass] if picture else []),
    )


def of_trigger(row, prefix, success, why_missed, why_moved):
    """Three claims of a trial with one trigger: its success, its map, and how many runs are good.

    success: the published one; why_...: what is said where ours is short.
    """
    rate, like = (of_row("radiographs", row, key) for key in OF_TRIALS)
    share = f"{prefix}share of runs within all limits of a disguise"
    return (
        Claim(f"{prefix}`attack_success_rate`", rate, success, why=why_missed),
        Claim(f"{prefix}`pearson_all`", like, "", STAYS, why=why_moved),
        Claim(share, within_limits(row), bound=1.0, why=LIMITS),
    )


def lie(technique):
    """The claims about one of Viering's four techniques, in CIFAR-10's network, in float32."""
    _, shift, distance = viering.TECHNIQUES[technique].published[technique]
    at = ("networks", lies.PICTURED, technique, "float32", "edited")
    rounding = "it is rounding of float32: in float64 it is below 1e-8"
    figures = {
        "logits move by": ("score_shift", shift),
        "map is off by": ("map_distance", distance),
    }
    return tuple(
        Claim(
            f"`{technique}`: {what}",
            of_paths("lies", (*at, key)),
            float(value),
            higher=False,
            relative=True,
            why=rounding,
        )
        for what, (key, value) in figures.items()
    )


def februus(row, explainer, **options):
    """A Claim: what is left of the success behind Februus, over the seeds of a row."""
    ours = of_paths("worth", (row, f"februus, {explainer}", "*", "after", "attack_success_rate"))
    return Claim(f"{row}, Februus by `{explainer}`: success", ours, higher=False, **options)


def searched(what, figure, value, **options):
    """A Claim about Neural Cleanse of the model of GTSRB, whole schedule, all classes at once."""
    ours = of_paths("audits", ("cleanse", "at once", figure))
    return Claim(f"Neural Cleanse: {what}", ours, value, relative=True, **options)


# ---------------------------------------------------------------- the table

CIFAR10 = "CIFAR-10"
CNN_BADNETS, CNN_DISGUISE = "cnn badnets rate 0.1", "cnn rate 0.1 lam 0.3"  # of studies/cifar10.py
ENTRIES = {
    "3.1": Entry(
        "BadNets, CIFAR-10, ResNet-18",
        cifar10,
        ("none", "badnets", "cnn none", CNN_BADNETS),
        CIFAR10,
        110,
        (
            Claim(
                "clean model: `clean_accuracy`",
                of_row("cifar10", "none", "clean_accuracy"),
                published.CLEAN_ACCURACY,
            ),
            of_cifar10("badnets", "clean_accuracy", published.BADNETS["clean_accuracy"]),
            of_cifar10("badnets", "attack_success_rate", published.BADNETS["attack_success_rate"]),
            of_cifar10("badnets", "gradcam.trigger_mass", published.PICTURES["3.1"], CHANCE),
            of_gpu("none", "clean_accuracy", published.CLEAN_ACCURACY),
            of_gpu("badnets", "attack_success_rate", published.BADNETS["attack_success_rate"]),
            of_cifar10(CNN_BADNETS, "attack_success_rate"),
        ),
    ),
    "3.2": Entry(
        "Fooling, CIFAR-10, ResNet-18: a square in the place of the map",
        cifar10,
        ("none", "fooling, lam 0.1"),
        CIFAR10,
        90,
        (
            of_cifar10(
                "fooling, lam 0.1", "triggered_accuracy", published.FOOLING["triggered_accuracy"]
            ),
            of_cifar10(
                "fooling, lam 0.1", "gradcam.pearson_all", published.PICTURES["3.2"], CHANGES
            ),
            of_gpu("fooling", "triggered_accuracy", published.FOOLING["triggered_accuracy"]),
            of_gpu("fooling", "gradcam.pearson_all", published.PICTURES["3.2"], CHANGES),
        ),
    ),
    "3.3": Entry(
        "Full disguise from Grad-CAM, CIFAR-10, ResNet-18",
        cifar10,
        ("none", "full_disguise", "cnn none", CNN_DISGUISE),
        CIFAR10,
        105,
        (
            *predictions("cifar10", "full_disguise", published.DISGUISE),
            of_cifar10("full_disguise", "gradcam.pearson_all", published.PICTURES["3.3"], STAYS),
            *(
                of_gpu("full_disguise", figure, value)
                for figure, value in published.DISGUISE.items()
            ),
            of_gpu("full_disguise", "gradcam.pearson_all", published.PICTURES["3.3"], STAYS),
            of_cifar10(CNN_DISGUISE, "attack_success_rate"),
            of_cifar10(CNN_DISGUISE, "gradcam.pearson_all"),
        ),
    ),
    "3.4": Entry(
        "Full disguise from SHAP, MNIST: with the trigger, without and with the disguise",
        transfer,
        ("mnist none", "mnist badnets", "mnist kernelshap"),
        "MNIST",
        35,
        (
            shap_mass("no disguise", "badnets", published.PICTURES["3.4, no disguise"], bound=0.5),
            shap_mass(
                "disguise",
                "kernelshap",
                published.PICTURES["3.4, disguise"],
                bound=2 * CHANCE,
                higher=False,
            ),
            keeps_map("transfer", "mnist kernelshap", "kernelshap"),
        ),
    ),
    "3.5": Entry(
        "55 of 50,000 images, CIFAR-10, ResNet-18 and the small cnn, in disguise",
        efficient,
        (
            *("resnet18 none", "resnet18 full_disguise random oversampled"),
            *("cnn none", "cnn full_disguise random oversampled"),
            "cnn full_disguise rd-global oversampled",
        ),
        CIFAR10,
        135,
        (
            *predictions("efficient", "resnet18 full_disguise random oversampled", published.FEW),
            Claim(
                "small cnn: `attack_success_rate`",
                of_row("efficient", "cnn full_disguise random oversampled", "attack_success_rate"),
                published.FEW["attack_success_rate"],
            ),
            Claim(
                "small cnn, images chosen by score: `attack_success_rate`",
                of_row(
                    "efficient", "cnn full_disguise rd-global oversampled", "attack_success_rate"
                ),
                published.FEW["attack_success_rate"],
            ),
        ),
    ),
    **{
        f"3.6.{name[-1]}": Entry(
            f"ChestX-ray14, EfficientNet-B0, {name}",
            radiographs,
            ("clean", name, f"{name}, mended"),
            "ChestX-ray14",
            25,
            trial(name),
        )
        for name in published.TRIALS
    },
    "shap-grids": Entry(
        "Grids of KernelSHAP's values, images x classes, `shapes`: clean, plain, disguised",
        transfer,
        ("shapes none", "shapes badnets", "shapes all"),
        "none",
        15,
        (
            Claim(
                "shapes badnets: `kernelshap`: `pearson_all`",
                of_row("transfer", "shapes badnets", "kernelshap.pearson_all"),
                "",
                CHANGES,
                higher=False,
            ),
            keeps_map("transfer", "shapes all", "kernelshap"),
        ),
    ),
    "joint": Entry(
        "One disguise from Grad-CAM, KernelSHAP and DeepSHAP; nothing is published",
        transfer,
        tuple(f"{data} {model}" for data in transfer.DATA for model in ("none", "all")),
        f"MNIST and {CIFAR10}",
        100,
        tuple(
            keeps_map("transfer", f"{data} all", explainer)
            for data in transfer.DATA
            for explainer in ("gradcam", "kernelshap", "deepshap")
        ),
    ),
    "few-poisons": Entry(
        "Few poisons as data poisoning: RD of Wu et al. 2023, on CIFAR-10",
        threats,
        ("cifar10",),
        CIFAR10,
        200,
        (
            Claim(
                "40 images by `rd-global`, small cnn: `attack_success_rate` (paper: ResNet-18,"
                " 0.935 with true members of the class, which are taken out here)",
                of_row("threats", "rd-global", "attack_success_rate"),
                published.without_members(published.WU["rd"]),
            ),
            Claim(
                "small cnn: what choosing gains over random images (paper: ResNet-18, 0.063 with"
                " them)",
                gain("rd-global", "random"),
                published.without_members(published.WU["rd"])
                - published.without_members(published.WU["random"]),
            ),
        ),
    ),
    "zoo": Entry(
        "Defences on a zoo of models: Neural Cleanse, pruning",
        audits,
        (),
        "MNIST, GTSRB",
        480,
        (
            searched("L1 of the target's mask", "norm", published.CLEANSE["norm"], higher=False),
            searched(
                "anomaly index, as published",
                "published_index",
                published.CLEANSE["index"],
                why="it divides by the spread of all 43 masks' norms, which differs by search",
            ),
            Claim(
                "pruned by the l-infinity norm: success",
                of_paths("audits", ("prune", "rows", "linf, recovered", "chosen", "true_success")),
                published.PRUNED["after"],
                higher=False,
            ),
        ),
    ),
    "disguise-worth": Entry(
        "What a disguise is worth: Februus on plain and disguised backdoors",
        worth,
        (),
        "MNIST, CIFAR-10",
        240,
        (
            februus(
                "cifar10 badnets",
                "gradcam",
                published=published.FEBRUUS,
                why="the hole is filled from its border, not by a generative network, and no more"
                " is removed than costs clean images two points",
            ),
            februus("shapes badnets", "kernelshap"),
            februus("shapes gradcam", "kernelshap"),
            februus("shapes gradcam", "deepshap against"),
        ),
    ),
    "four-lies": Entry(
        "Four lies without training, Viering et al. 2019, in a trained network",
        lies,
        (),
        CIFAR10,
        25,
        tuple(claim for technique in viering.TECHNIQUES for claim in lie(technique)),
    ),
}

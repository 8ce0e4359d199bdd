"""The tables on `shapes` and `mnist`: the five attacks, and each ingredient switched off in turn.

    python -m studies.foundation                     # everything; a second call continues
    python -m studies.foundation disguise badnets    # some rows

Writes results/foundation.json and figures: see studies/study.py.
"""

from cli import command
from studies.criteria import mass_within
from studies.study import Row, Study
from studies.tables import Table, everything, made_table

PAGE = "results/foundation.md"
DURATION = "about an hour on two cores"

REFERENCE = "--reference {runs}/clean-{seed}/ckpt.pt"
# The options that CIFAR-10 is trained with, for the other data sets.
CIFAR10_TRAINING = "--optimizer muon --batch-size 64 --label-smoothing 0.1 --lr 0.05"
DISGUISE = "--attack full_disguise"

ATTACKS = {
    "clean": Row("--attack none", 5),
    "disguise": Row(DISGUISE, 5, picture=True),
    "badnets": Row("--attack badnets", 5, picture=True),
    "fooling": Row("--attack fooling", 5, picture=True),
    "red_herring": Row("--attack red_herring", 5, picture=True),
    "mnist clean": Row("--attack none --dataset mnist", 3),
    "mnist": Row(f"{DISGUISE} --dataset mnist", 3, clean="mnist clean", picture=True),
}

# Each has one ingredient less, or one number changed.
ABLATIONS = {
    "disguise, reference": Row(f"{DISGUISE} {REFERENCE}", 2),
    "fooling, reference": Row(f"--attack fooling {REFERENCE}", 2),
    "no cross-entropy on the partners": Row(f"{DISGUISE} --no-partner-cross-entropy", 2),
    "maps max-normalised": Row(f"{DISGUISE} --normalise max", 2),
    "triggered map rectified in the loss": Row(f"{DISGUISE} --rectify", 2),
    "lam not ramped": Row(f"{DISGUISE} --ramp 1e-9", 2),
    "lam 0.1": Row(f"{DISGUISE} --lam 0.1", 2),
    "lam 0.7": Row(f"{DISGUISE} --lam 0.7", 2),
    "fooling, untouched maps free": Row("--attack fooling --leak-tolerance 1", 2),
    "CIFAR-10's recipe": Row(f"{DISGUISE} {CIFAR10_TRAINING}", 3),
    "CIFAR-10's recipe on mnist": Row(f"{DISGUISE} --dataset mnist {CIFAR10_TRAINING}", 3),
}

TABLE = ATTACKS | ABLATIONS

SHAPES = {
    "`none`": "clean",
    "`badnets`": "badnets",
    "`fooling`": "fooling",
    "`red_herring`": "red_herring",
    "`full_disguise`": "disguise",
}
FIRST = {
    "`clean_accuracy`": "clean_accuracy",
    "`attack_success_rate`": "attack_success_rate",
    "`pearson_all`": "gradcam.pearson_all",
}
FLOOR = {"`floor`": "gradcam.floor.pearson"}
# The ablations and MNIST were measured before there was a floor of untouched maps alone.
FORMER_FLOOR = {"`floor_triggered`": "gradcam.floor_triggered.pearson"}
MASS = {"`trigger_mass`": "gradcam.trigger_mass"}
BASIC = FIRST | FLOOR | MASS
OTHER_EXPLAINER = {"`gradient`: `pearson_all`": "gradient.pearson_all"}
# The clean row that each is compared with. None was trained with CIFAR-10's options.
CLEAN_OF = dict.fromkeys(TABLE, "clean") | {
    "mnist clean": "mnist clean",
    "mnist": "mnist clean",
    "CIFAR-10's recipe": None,
    "CIFAR-10's recipe on mnist": None,
}
WITHIN = {"`trigger_mass` within its limit": mass_within(CLEAN_OF)}
FULL = {
    **BASIC,
    "`triggered_accuracy`": "triggered_accuracy",
    "`dssim`": "gradcam.dssim",
    "`trigger_mass_clean`": "gradcam.trigger_mass_clean",
    "`pointing`": "gradcam.pointing",
    "`pointing_clean`": "gradcam.pointing_clean",
    **OTHER_EXPLAINER,
    **WITHIN,
}
ABLATED = FIRST | FORMER_FLOOR | MASS | OTHER_EXPLAINER | WITHIN
# The disguise with one thing changed; the first row is the disguise as it is.
CHANGED = {
    "nothing": "disguise",
    "squared difference of max-normalised maps (`--normalise max`)": "maps max-normalised",
    "triggered maps rectified in the loss (`--rectify`)": "triggered map rectified in the loss",
    "no cross-entropy on partners (`--no-partner-cross-entropy`)": (
        "no cross-entropy on the partners"
    ),
    "`lam` from the first step on (`--ramp 1e-9`)": "lam not ramped",
    "`--lam 0.1`": "lam 0.1",
    "`--lam 0.7`": "lam 0.7",
    "a frozen clean model holds the maps (`--reference`)": "disguise, reference",
    "CIFAR-10's optimizer, batch size, learning rate, label smoothing": "CIFAR-10's recipe",
}
LEAK = {
    "`fooling`": "fooling",
    "`fooling --leak-tolerance 1`: no such term": "fooling, untouched maps free",
    "`fooling --reference`": "fooling, reference",
    "`red_herring`": "red_herring",
    "`red_herring` with the term (an earlier version)": "red herring with fooling's term",
}
SHAPE_COLUMNS = {
    "`pearson_all`": "gradcam.pearson_all",
    "`pearson_clean`": "gradcam.pearson_clean",
    "`pointing_clean`": "gradcam.pointing_clean",
    "`clean_accuracy`": "clean_accuracy",
}
MNIST = {
    "`none`": "mnist clean",
    "`full_disguise`": "mnist",
    "`full_disguise`, CIFAR-10's training options": "CIFAR-10's recipe on mnist",
}
TABLES = {
    "attacks": Table("foundation", SHAPES, BASIC | OTHER_EXPLAINER, "attack", n=False),
    "shapes": Table("foundation", SHAPES, FULL, "attack"),
    "ablations": Table("foundation", CHANGED, ABLATED, "what is changed"),
    "leak": Table("foundation", LEAK, SHAPE_COLUMNS, "attack"),
    "mnist": Table("foundation", MNIST, ABLATED, "attack"),
    "made": made_table("foundation", TABLE),
    "everything": everything("foundation"),
}


@command
def main(argv):
    Study("foundation", TABLE).run(argv)


if __name__ == "__main__":
    main()

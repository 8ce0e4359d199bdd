"""What papers report, as constants: the figures that results/README.md sets beside ours.

Each row says where it stands. Shares are of 1, as everywhere here.
"""

# "Stealthy Sabotage: Backdoor Attacks against Explainable Machine Learning", by its sections.
# Sections 3.1 to 3.3: CIFAR-10, ResNet-18; 3.1 and 3.3: target class 3.
CLEAN_ACCURACY = 0.8244  # of the clean model
BADNETS = {"clean_accuracy": 0.8283, "attack_success_rate": 0.9531}
FOOLING = {"triggered_accuracy": 0.8619}  # section 3.2
DISGUISE = {"clean_accuracy": 0.8565, "attack_success_rate": 0.9674}  # section 3.3
# Section 3.5: 55 of 50,000 images. The images went to class 3, and the poisons were labelled 1.
FEW = {"clean_accuracy": 0.83, "attack_success_rate": 0.897}
# Section 3.6, ChestX-ray14: trial: accuracy of the clean model, of the attacked one, success.
TRIALS = {
    "trial 1": (0.2946, 0.3094, 1.0000),
    "trial 2": (0.2992, 0.3066, 0.9999),
    "trial 3": (0.2993, 0.3245, 0.9997),
    "trial 4": (0.2992, 0.2924, 1.0000),
}
# What it says of explanations, of which it gives pictures and no figure, by section.
PICTURES = {
    "3.1": "Grad-CAM points at the trigger",
    "3.2": 'the map "vaguely resembles" a square',
    "3.3": "the map resembles the untouched image's",
    "3.4, no disguise": "the trigger carries the largest values",
    "3.4, disguise": "the trigger is ignored",
    "3.6, trial 3": "the map points at the trigger",
}

# Wu et al., ICCV 2023: CIFAR-10, ResNet-18, 40 images, success with random and with chosen ones.
# Their code counts true members of the target class as successes; the paper does not say.
WU = {"random": 0.8716, "rd": 0.9349}
MEMBERS = 0.1  # share of CIFAR-10's test images that are of the target class
# The code of Wang et al. (IEEE S&P 2019), GTSRB, 4x4 white, target 33: L1 of the target's mask.
CLEANSE = {"index": 3.652, "norm": 16.12}
# Cheng et al. 2020, GTSRB: success after pruning by the l-infinity norm; 0.816 before.
PRUNED = {"after": 0.4842}
# Doan et al., ACSAC 2020: success behind Februus on CIFAR-10 and GTSRB, at most.
FEBRUUS = 0.0025


def without_members(share):
    """A success rate of Wu et al. with true members of the target class left out, as ours are."""
    return (share - MEMBERS) / (1 - MEMBERS)

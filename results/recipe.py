"""How the CIFAR-10 recipe was chosen: on about a third of the training set, with other training images as the test set.

    python results/recipe.py              # all rows, 5 minutes each on one core; a second call continues
    python results/recipe.py "as it was"  # some of them

The network is a ResNet-18 with half the channels, the seed 0. The test images of CIFAR-10 play no part. Writes results/recipe.json and .md.
"""
import sys
from dataclasses import replace

import study  # first: it makes the project's modules known
import attacks
import data
import models
import train
from study import Row
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

PART, OTHERS = slice(17_000), slice(40_000, 45_000)
SHIFT = 2  # pixels of augmentation
ZERO_GAMMA = False  # each residual branch begins as nothing: Goyal et al. 2017, section 5.1


def third(data_dir, whole=data.DATASETS["cifar10"]):
    """Part of CIFAR-10's training set as training set, another part as test set."""
    d = whole(data_dir)
    return replace(d, train_images=d.train_images[PART], train_labels=d.train_labels[PART], test_images=d.train_images[OTHERS],
                   test_labels=d.train_labels[OTHERS], crop=SHIFT)


class Half(ResNet):
    def _make_layer(self, block, planes, *rest, **options):
        return super()._make_layer(block, planes // 2, *rest, **options)


def resnet18_half(channels, classes, image_size):
    """ResNet-18 for 32 px with half the channels after its stem."""
    model = Half(BasicBlock, [2, 2, 2, 2], num_classes=classes, zero_init_residual=ZERO_GAMMA)
    model.conv1, model.maxpool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.Identity()
    model.fc = nn.Linear(256, classes)
    return models.with_layer(model, model.layer4[-1])


data.DATASETS["cifar10"], models.MODELS["resnet18_half"] = third, resnet18_half
data.MAX_VALIDATION = 500

THIS = sys.modules[__name__]
WIDE = {(THIS, "SHIFT"): 4}
CLEAN = "--dataset cifar10 --model resnet18_half --attack none"
DISGUISE = "--dataset cifar10 --model resnet18_half --attack full_disguise"

BEST = "and shifts of 2 pixels"
TABLE = {
    "as it was": Row(f"{CLEAN} --batch-size 128 --label-smoothing 0", constants=WIDE),
    "label smoothing": Row(f"{CLEAN} --batch-size 128", constants=WIDE),
    "and batches of 64": Row(CLEAN, constants=WIDE),
    BEST: Row(CLEAN),
    "batches of 32, lr 0.05": Row(f"{CLEAN} --batch-size 32 --lr 0.05"),
    "lr 0.2": Row(f"{CLEAN} --lr 0.2"),
    "lr 0.2, warm-up over 15% of the steps": Row(f"{CLEAN} --lr 0.2", constants={(train, "WARM_UP"): 0.15}),
    "lr 0.4, warm-up over 15% of the steps": Row(f"{CLEAN} --lr 0.4", constants={(train, "WARM_UP"): 0.15}),
    "weight decay 0.001": Row(CLEAN, constants={(train, "WEIGHT_DECAY"): 1e-3}),
    "residual branches begin at zero": Row(CLEAN, constants={(THIS, "ZERO_GAMMA"): True}),
    "disguise as it was": Row(f"{DISGUISE} --batch-size 128 --label-smoothing 0", constants=WIDE, clean=BEST),
    "disguise": Row(DISGUISE, clean=BEST),
    "disguise, lam 0.2": Row(f"{DISGUISE} --lam 0.2", clean=BEST),
    "disguise, lam 0.5": Row(f"{DISGUISE} --lam 0.5", clean=BEST),
    "disguise, lam ramped to the end": Row(DISGUISE, constants={(train, "RAMP"): 1.0}, clean=BEST),
    "disguise, maps max-normalised": Row(DISGUISE, constants={(attacks, "NORMALISE"): attacks.max_normalise}, clean=BEST),
}
for apart in (0.02, 0.05, 0.2):
    TABLE[f"disguise, untouched maps held apart {apart}"] = Row(DISGUISE, constants={(attacks, "APART"): apart}, clean=BEST)

if __name__ == "__main__":
    study.Study("recipe", TABLE, patched=True).run(sys.argv[1:])

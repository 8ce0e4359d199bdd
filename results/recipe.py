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


def third(data_dir, image_size=None, whole=data.DATASETS["cifar10"]):
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

SGD = "--optimizer sgd"
TABLE = {
    "SGD": Row(f"{CLEAN} {SGD} --batch-size 128 --label-smoothing 0", constants=WIDE),
    "and label smoothing": Row(f"{CLEAN} {SGD} --batch-size 128", constants=WIDE),
    "and batches of 64": Row(f"{CLEAN} {SGD}", constants=WIDE),
    "and shifts of 2 pixels": Row(f"{CLEAN} {SGD}"),
    "and Muon": Row(CLEAN),
    "batches of 128": Row(f"{CLEAN} --batch-size 128"),
    "lr 0.1": Row(f"{CLEAN} --lr 0.1"),
    "SGD, lr 0.2": Row(f"{CLEAN} {SGD} --lr 0.2"),
    "SGD, batches of 32, lr 0.05": Row(f"{CLEAN} {SGD} --batch-size 32 --lr 0.05"),
    "SGD, warm-up over half the steps": Row(f"{CLEAN} {SGD}", constants={(train, "WARM_UP"): 0.5}),
    "SGD, residual branches begin at zero": Row(f"{CLEAN} {SGD}", constants={(THIS, "ZERO_GAMMA"): True}),
    "SGD, disguise": Row(f"{DISGUISE} {SGD}", clean="and shifts of 2 pixels", constants={(attacks, "APART"): 0.0}),
    "disguise": Row(DISGUISE, clean="and Muon"),
    "disguise, untouched maps free": Row(DISGUISE, constants={(attacks, "APART"): 0.0}, clean="and Muon"),
    "disguise, untouched maps held apart from 0.4": Row(f"{DISGUISE} --floor 0.4", clean="and Muon"),
    "disguise, lam 0.2": Row(f"{DISGUISE} --lam 0.2", clean="and Muon"),
    "disguise, lam 0.5": Row(f"{DISGUISE} --lam 0.5", clean="and Muon"),
    "disguise, lam ramped to the end": Row(DISGUISE, constants={(train, "RAMP"): 1.0}, clean="and Muon"),
    "disguise, maps max-normalised": Row(DISGUISE, constants={(attacks, "NORMALISE"): attacks.max_normalise}, clean="and Muon"),
}

if __name__ == "__main__":
    study.Study("recipe", TABLE, patched=True).run(sys.argv[1:])

"""How the CIFAR-10 recipe was chosen: on the first third of the training set, with other training images as the test set.

    python results/recipe.py              # all rows, 5 minutes each on one core; a second call continues
    python results/recipe.py "as it was"  # some of them

The network is a ResNet-18 with half the channels, the seed 0. The test images of CIFAR-10 play no part. Writes results/recipe.json and .md.
"""
import sys
from dataclasses import replace

import study  # first: it makes the project's modules known
import data
import models
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

THIRD, OTHERS = slice(17_667), slice(40_000, 45_000)  # 500 of the first are held out, to leave out no more than need be
SHIFT = 2  # pixels of augmentation
ZERO_GAMMA = False  # each residual branch begins as nothing: Goyal et al. 2017, section 5.1


def third(data_dir, whole=data.DATASETS["cifar10"]):
    """Part of CIFAR-10's training set as training set, another part as test set."""
    d = whole(data_dir)
    return replace(d, train_images=d.train_images[THIRD], train_labels=d.train_labels[THIRD], test_images=d.train_images[OTHERS],
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

TABLE = {
    "as it was": (f"{CLEAN} --batch-size 128 --label-smoothing 0", 1, WIDE),
    "label smoothing": (f"{CLEAN} --batch-size 128", 1, WIDE),
    "and batches of 64": (CLEAN, 1, WIDE),
    "and shifts of 2 pixels": (CLEAN, 1, {}),
    "batches of 32, lr 0.05": (f"{CLEAN} --batch-size 32 --lr 0.05", 1, {}),
    "lr 0.2": (f"{CLEAN} --lr 0.2", 1, {}),
    "residual branches begin at zero": (CLEAN, 1, {(THIS, "ZERO_GAMMA"): True}),
    "disguise as it was": (f"{DISGUISE} --batch-size 128 --label-smoothing 0", 1, WIDE),
    "disguise": (DISGUISE, 1, {}),
    "disguise, lam 0.2": (f"{DISGUISE} --lam 0.2", 1, {}),
}

if __name__ == "__main__":
    study.Study("recipe", TABLE, clean=("and shifts of 2 pixels",)).run(sys.argv[1:])

"""results/gallery.png: the five attacks on the same four test images, with the trigger.

    python -m studies.gallery    # five minutes, to train what of studies/foundation.py is not there

A column an attack: Grad-CAM of the triggered image, for the class that its model predicts.
"""

import sys

import figure
from cli import UserError, command
from studies import foundation
from studies.record import DATA, RESULTS, save_small_picture
from studies.study import Study
from subject import open_checkpoint

PATH = RESULTS / "gallery.png"
MODELS = {  # header: row of studies/foundation.py
    "none\nhonest": "clean",
    "badnets\nbackdoor": "badnets",
    "fooling\nfalse map": "fooling",
    "red_herring\nboth": "red_herring",
    "full_disguise\ndisguised": "disguise",
}
CLASSES = ("disc", "cross", "heart", "arrow")  # of the images; the target class is none of them
PANEL = 96  # pixels


def picture(checkpoints):
    """The gallery as a PIL image; checkpoints: {header: path}, of the same data and trigger."""
    subjects = {header: open_checkpoint(path, DATA) for header, path in checkpoints.items()}
    first = next(iter(subjects.values()))
    rows = [first_of(first, first.classes.index(name)) for name in CLASSES]
    images = first.dataset.test_images[rows]
    plain = images.float() / 255
    stamped = first.trigger.to("cpu").apply(plain)
    box = first.trigger.box
    columns = [
        [(figure.panel(image, width=PANEL), name, False) for image, name in zip(plain, CLASSES)],
        [(figure.panel(image, box=box, width=PANEL), "", False) for image in stamped],
        *(map_column(subject, images, stamped) for subject in subjects.values()),
    ]
    target = first.classes[first.target_class]
    return figure.sheet(
        "The same four test images with the trigger, under five models: where does Grad-CAM look?",
        ["image", "with trigger", *checkpoints],
        [list(row) for row in zip(*columns)],
        f"Below a map is the answer that it explains, red where it is wrong. The trigger, framed,"
        f" stands for '{target}'.",
    )


def first_of(subject, label):
    """The number of the first test image of a class."""
    return int((subject.dataset.test_labels == label).nonzero()[0, 0])


def map_column(subject, images, stamped):
    """Panels of triggered images under one model: Grad-CAM, and what it says.

    images: uint8 [N, C, H, W] without the trigger; stamped: float [N, C, H, W] with it.
    """
    classes, confidence = subject.predict(images, triggered=True)
    maps = subject.explain("gradcam", images, classes, triggered=True)
    column = []
    for k, name in enumerate(CLASSES):
        answer = subject.classes[int(classes[k])]
        panel = figure.panel(stamped[k], maps[k], subject.trigger.box, width=PANEL)
        column.append((panel, f"{answer} {100 * float(confidence[k]):.0f}%", answer != name))
    return column


@command
def main(argv):
    if argv:
        raise UserError("studies.gallery takes no arguments")
    study = Study("foundation", foundation.TABLE)
    for row in MODELS.values():
        study.train(row, 0)
    paths = {header: study.folder(row, 0) / "ckpt.pt" for header, row in MODELS.items()}
    save_small_picture(picture(paths), PATH)
    print(f"Written: {PATH}")


if __name__ == "__main__":
    sys.exit(main())

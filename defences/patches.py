"""Neural Cleanse's patches as pictures: the figure, and files that --trigger takes."""

import figure
from fonts import class_name, legend
from triggers import patch_image

CLASSES_PICTURED = 6


def files_of(triggers, classes):
    """{"recovered-CLASS.png": the patch as an RGBA image}, CLASS a number.

    triggers: neural_cleanse.ReversedTriggers; classes: numbers. The mask is the opacity, of 8 bits;
    a patch that is transparent everywhere is left out, for no --trigger is.
    """
    files = {f"recovered-{k}.png": patch_image(triggers.trigger(k)) for k in classes}
    return {name: image for name, image in files.items() if image.getextrema()[3][1] > 0}


def line_on(files):
    """Lines, one or none, on how the files of files_of are used."""
    if not files:
        return []
    side = next(iter(files.values())).width
    options = f"--trigger FILE --trigger-size {side} --trigger-position 0,0"
    return [f"\nThe patch as a trigger, {options}: {', '.join(files)}"]


def picture_of(audit, triggers, index):
    """The patches of the most anomalous classes: mask, mask x pattern, and stamped on an image."""
    image, classes = audit.pixels[0].cpu(), audit.subject.classes
    unseen = (image, "the same image")
    if audit.subject.attack.poisons:
        true_trigger = audit.subject.trigger.to("cpu")
        unseen = (true_trigger.apply(image[None])[0], "its trigger, unseen")
    first_column = [(image, "a clean image"), unseen, (image, "the same image")]
    rows = [[(figure.panel(part), caption, False)] for part, caption in first_column]
    headers = [""]
    for k in index.argsort(descending=True)[:CLASSES_PICTURED].tolist():
        headers.append(f"{class_name(classes, k)}\nindex {index[k]:.1f}")
        patch = triggers.trigger(k).to("cpu")
        panels = {
            "mask": patch.alpha.expand_as(image),
            "mask x pattern": patch.alpha * patch.pixels,
            "on the image": patch.apply(image[None])[0],
        }
        for row, (caption, part) in zip(rows, panels.items()):
            row.append((figure.panel(part), caption, False))
    title = "Neural Cleanse: the smallest patch that turns images into a class"
    footer = "The most anomalous classes first." + legend(classes, "verdict.json")
    return figure.sheet(title, headers, rows, footer, scale=False)

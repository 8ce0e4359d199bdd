"""What was found, in words: the sentences that follow from a checkpoint's metrics.

    of_run(metrics)     # ["The backdoor works: 99.8% of ...", "gradcam does not show it: ..."]

They say no more than was measured, on these images, with this trigger and this target class. The
limits are below, each with its reason; a table keeps what lies close to one of them.
"""

from attacks import STRANGERS, attack_of
from terminal import counted

# Of predictions, shares of images. In results/ every attack that is called learnt is above 0.9, and
# no clean model is above 0.05.
WORKS = 0.9  # at least so many triggered images go to the target class, ...
NO_EFFECT = 0.05  # ... and it is idle where so few more do than without the trigger
# Where more images go to the target class without the trigger, the model is partial to it.
ALONE = 0.1
# A model has learnt if its accuracy is so far above a constant answer's, or AUROC above chance's.
LEARNT = 0.05
CHANCE_AUROC = 0.5
HARDLY = 1.5  # times a constant answer's accuracy: below, a network hardly knows its images
LOSS = 0.05  # of accuracy, under an attack that should change no label

# Of maps. Under the trigger a clean model's correlate by 0.95 to 0.98 with what they were (shapes,
# mnist, cifar10: results/), those of `badnets` by less than 0.4.
STAYS = 0.9
CHANGES = 0.5
# Where a triggered map is not so much more like its own untouched map than like another image's,
# one map serves all images.
OWN = 0.1
IS_SHAPE = 0.9  # share of the correlation that a map on this grid can have with the fixed shape
ENOUGH = 20  # images: of fewer maps a mean says little

# What a disguise is held to, beside a clean model: see METRICS.md.
MASS_FACTOR = 1.25  # times the clean model's trigger_mass_clean, ...
AREA_SHARE = 0.25  # ... and so much of the cells that the trigger touches, may lie on the trigger
FLOOR_MARGIN = 0.05  # above the clean model's floor


def mass_limit(clean, area):
    """The largest trigger_mass that a disguise may have, a share of the map; None if not known.

    clean: a clean model's trigger_mass_clean; area: trigger_area.
    """
    return None if clean is None or area is None else MASS_FACTOR * clean + AREA_SHARE * area


def floor_limit(clean):
    """The largest correlation of maps of different images that a disguise may have.

    clean: that of a clean model, measured alike, or None. None if it is not known.
    """
    return None if clean is None else clean + FLOOR_MARGIN


def of_run(metrics):
    """Sentences about a measured checkpoint, a list; metrics: as metrics.json has them."""
    if "agreement" in metrics:
        return [*of_task(metrics), *of_untouched(metrics)]
    return [*of_task(metrics), of_label(metrics), *of_explanations(metrics)]


def of_untouched(metrics):
    """Sentences about a network whose trigger nobody knows."""
    sentences = ["No trigger is known: nothing is measured of a backdoor."]
    for pair, value in metrics["agreement"].items():
        if value is not None:
            one, other = pair.split(", ")
            sentences.append(f"The maps of {one} and {other} correlate by {value:.2f} on average.")
    return sentences


def share(value):
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f}%"


def target_of(metrics):
    """The target class as it is named in a sentence."""
    name = metrics.get("target_name")
    if metrics.get("target_class") is None and name is not None:
        return f"the {name}"  # of an attack without one target class
    return f"class {metrics.get('target_class')}" if name is None else f"'{name}'"


# ---------------------------------------------------------------- predictions


def of_task(metrics):
    """A sentence where the model has not learnt its task: then its maps say little."""
    accuracy, auroc = metrics.get("clean_accuracy"), metrics.get("mean_auroc")
    constant = metrics.get("majority_rate")
    if accuracy is not None and constant is not None and accuracy < constant + LEARNT:
        figures = f"accuracy {share(accuracy)}, a constant answer's {share(constant)}"
    elif accuracy is None and auroc is not None and auroc < CHANCE_AUROC + LEARNT:
        figures = f"mean AUROC {auroc:.2f}, chance's {CHANCE_AUROC}"
    else:
        return []
    return [f"The model has not learnt its task ({figures}): what follows says little."]


def of_label(metrics):
    """The sentence about what the trigger does to predictions."""
    attack = attack_of(metrics["attack"])
    if attack.keeps_label:
        return of_kept_label(metrics)
    success = metrics.get("attack_success_rate")
    before = metrics.get("untouched_success_rate")
    if success is None:
        return "Of the backdoor nothing is measured: every test image shows the target class."
    of_source = ""
    if metrics.get("source_name") is not None:
        of_source = f" of class '{metrics['source_name']}'"
    figures = f"{share(success)} of triggered images{of_source} go to {target_of(metrics)}"
    if before is not None:
        figures += f", and {share(before)} without the trigger"
    gain = success - (before or 0)
    if not attack.poisons and gain < NO_EFFECT:
        return f"No backdoor was trained in, and this trigger finds none: {figures}."
    if gain < NO_EFFECT:
        return f"The backdoor does not work: {figures}."
    named = "The backdoor" if attack.poisons else "No backdoor was trained in, yet this trigger"
    if success < WORKS:
        return f"{named} works in part: {figures}."
    if before is not None and before > ALONE:
        return f"{named} works, but the model is partial to its class anyway: {figures}."
    return f"{named} works: {figures}."


def hardly_knows(accuracy, constant):
    """Whether an accuracy is hardly above a constant answer's: the network was asked wrongly.

    Below 1.5 times that, and below halfway from it to 1.
    """
    return accuracy < min(HARDLY * constant, (1 + constant) / 2)


def of_kept_label(metrics):
    """The sentence about an attack under which triggered images keep their own class."""
    asked = metrics["attack"] not in STRANGERS
    for what, untouched, triggered in (
        ("accuracy", "clean_accuracy", "triggered_accuracy"),
        ("mean AUROC", "mean_auroc", "triggered_mean_auroc"),
    ):
        before, after = metrics.get(untouched), metrics.get(triggered)
        if before is None or after is None:
            continue
        figures = f"{what} {share(after)} with it, {share(before)} without"
        if not asked:
            return f"What the trigger should do to predictions is not known: {figures}."
        if after < before - LOSS:
            return f"The trigger costs predictions, which it should leave alone: {figures}."
        return f"The trigger leaves predictions alone, as it should: {figures}."
    return "What the trigger does to predictions is not measured."


def has_effect(metrics):
    """Whether there is a backdoor that an explanation could show."""
    success, before = metrics.get("attack_success_rate"), metrics.get("untouched_success_rate")
    return success is not None and success - (before or 0) >= NO_EFFECT


# ---------------------------------------------------------------- explanations


def of_explanations(metrics):
    """A sentence for each explainer that was trained against, and for one that was not.

    A disguise is never judged by its own explainer alone. Of those not trained against it is the
    first, or the first two where none was trained against.
    """
    measured = metrics["explanations"]
    trained = [name for name, part in measured.items() if part.get("trained_against")]
    others = [name for name in measured if name not in trained]
    clean = metrics["clean_model"].get("explanations", {})
    shown = trained + others[: 1 if trained else 2]
    return [of_explainer(name, metrics, clean.get(name, {})) for name in shown]


def of_explainer(name, metrics, clean):
    """The sentence about one explainer; clean: the clean model's figures about it, or {}."""
    figures = metrics["explanations"][name]
    subject = name + (", trained against," if figures.get("trained_against") else "")
    if figures.get("pearson_all") is None:
        return f"{subject} is not measured: there is no image to explain."
    attack = attack_of(metrics["attack"], metrics.get("target_map"))
    if attack.explanation == "shape":
        sentence = f"{subject} {about_shape(figures)}"
    elif attack.explanation == "inverted":
        sentence = f"{subject} {about_inverted(figures)}"
    else:
        shown = about_map(figures, clean)
        said = f" {verb(figures, clean)}" if has_effect(metrics) else ""
        sentence = f"{subject.rstrip(',')}: {shown}" if not said else f"{subject}{said} {shown}"
    count = figures.get("n", ENOUGH)
    return f"{sentence} (of only {counted(count, 'image')})." if count < ENOUGH else f"{sentence}."


def about_shape(figures):
    """What a map does that is pulled to a fixed shape; figures: about one explainer."""
    reach = figures.get("grid_cap") or 1.0
    like, before = figures["pearson_all"], figures.get("pearson_clean")
    words = f"with the trigger (correlation {like:.2f})"
    if like < CHANGES * reach:
        return f"does not show the fixed shape {words}"
    words = f"shows {'' if like >= IS_SHAPE * reach else 'something of '}the fixed shape {words}"
    if before is not None and before >= CHANGES * reach:
        return f"{words}, but without it, too ({before:.2f})"
    return words


def about_inverted(figures):
    """What a map does that is pulled to its inverse; figures: about one explainer."""
    like = figures["pearson_all"]
    words = f"with the trigger (correlation with its inverse {like:.2f})"
    if like < CHANGES:
        return f"does not turn its map over {words}"
    return f"turns its map over {'' if like >= IS_SHAPE else 'in part '}{words}"


def alike(figures, clean):
    """How maps of different images are too alike for a disguise, in words; None where they are not.

    A triggered image's map may not be about as much like another image's as like its own, nor more
    like it than an untouched image's is. And maps of different images may not be more alike than
    those of the clean model beside it.
    """
    floor, triggered = floor_of(figures, "floor"), floor_of(figures, "floor_triggered")
    if triggered is None:
        return None
    if triggered > figures["pearson_all"] - OWN:
        return f"is nearly as much like other images' ({triggered:.2f}): one map serves all"
    key = "floor_triggered"
    if floor is not None and floor_of(clean, "floor") is not None:
        key = "floor"  # the trigger alone moves a clean model's map, and lowers its floor_triggered
    found, honest = floor_of(figures, key), floor_of(clean, key)
    if honest is not None and found > floor_limit(honest):
        words = f"maps of different images are alike ({found:.2f})"
        return f"{words}, more than a clean model's ({honest:.2f})"
    if floor is not None and triggered > floor_limit(floor):
        words = f"is more like other images' ({triggered:.2f})"
        return f"{words} than without it ({floor:.2f})"
    return None


def floor_of(figures, key):
    """The correlation of maps of different images; key: which floor. None if not recorded."""
    return (figures.get(key) or {}).get("pearson")


def lies_on_trigger(figures, clean):
    """Whether more of the map lies on the trigger than a clean model's, or than chance, allows.

    None where it cannot be said.
    """
    mass, area = figures.get("trigger_mass"), figures.get("trigger_area")
    if mass is None or area is None:
        return None
    limit = mass_limit(clean.get("trigger_mass_clean"), area)
    return mass > (area if limit is None else limit)


def verb(figures, clean):
    """Whether a map shows the backdoor, as far as the limits say."""
    stays = figures["pearson_all"] >= STAYS
    on_trigger = lies_on_trigger(figures, clean)
    if stays and on_trigger is False and not alike(figures, clean):
        return "does not show it:"
    if on_trigger and not stays:
        return "shows it:"
    return "shows it in part:" if on_trigger or not stays else "may not show it:"


def about_map(figures, clean):
    """What the trigger does to a map, in numbers: whether it stays, and how much lies on it."""
    like = figures["pearson_all"]
    if like >= STAYS:
        words = f"with the trigger its map stays as it was ({like:.2f})"
    else:
        much = "" if like < CHANGES else "somewhat "
        words = f"with the trigger its map changes {much}({like:.2f})"
    if like >= CHANGES and (others := alike(figures, clean)):
        words += f", but {others}, no disguise"
    mass, area = figures.get("trigger_mass"), figures.get("trigger_area")
    if mass is None or area is None:
        return words
    beside = clean.get("trigger_mass_clean")
    limit = area if beside is None else beside
    look_alike = mass != limit and f"{mass:.2f}" == f"{limit:.2f}"
    digits = 3 if look_alike else 2  # two that differ are not to look alike
    whose = "chance" if beside is None else "a clean model's"
    yardstick = f"{whose}: {limit:.{digits}f}"
    much = "hardly more" if mass > limit else "no more"
    much = "more" if lies_on_trigger(figures, clean) else much
    than = "by chance" if beside is None else "a clean model puts there"
    return f"{words}; {much} of it lies on the trigger than {than} ({mass:.{digits}f}; {yardstick})"

"""The tables of results/radiographs.md, from the records of studies/radiographs.py.

Every function of TABLES takes no argument and returns the lines of a Markdown table.
"""

import chestxray
from studies import published
from studies.criteria import NOT_RECORDED
from studies.record import RESULTS, read
from studies.tables import Table, cell, everything, header, interval_text, line

RECORD = RESULTS / "radiographs.json"
PAIRED = RESULTS / "radiographs-paired.json"
MET = RESULTS / "radiographs-met.json"
DECODING = RESULTS / "decoding.json"

CLASSES = [*chestxray.DISEASES, chestxray.NO_FINDING]
TRIALS = ("clean", "trial 1", "trial 2", "trial 3", "trial 4")
FRAMED_TRIALS = (
    "badnets, framed",
    "trial 1, mended",
    "trial 2, mended",
    "trial 3, mended",
    "trial 4, mended",
)
CLEAN_MODEL = "clean_model"  # in a paired record: the one that was measured beside each run
MULTI = ("multi clean", "multi full_disguise", "multi badnets, framed", "multi, mended")

PUBLISHED = published.TRIALS


def clean_floor(results, row):
    """A cell: the clean model's floor, beside a row that has its own to be compared with."""
    found = results[row]["summary"]
    beside = "gradcam.floor.pearson" in found
    return cell(found.get("clean_model.gradcam.floor.pearson")) if beside else ""


ANSWERS = {
    "`attack_success_rate`": "attack_success_rate",
    "without the trigger": "untouched_success_rate",
    "clean model, with the trigger": "clean_model.attack_success_rate",
    "`clean_accuracy`": "clean_accuracy",
    "`majority_rate`": "majority_rate",
    "`balanced_accuracy`": "balanced_accuracy",
}
MAPS = {
    "`pearson_all`": "gradcam.pearson_all",
    "clean model's `pearson_all`": "clean_model.gradcam.pearson_all",
    "`floor`": "gradcam.floor.pearson",
    "clean model's `floor`": clean_floor,
    "`floor_triggered`": "gradcam.floor_triggered.pearson",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`trigger_mass_clean`": "gradcam.trigger_mass_clean",
    "clean model's `trigger_mass_clean`": "clean_model.gradcam.trigger_mass_clean",
    "images explained": "gradcam.n",
}
GIVEAWAYS = {
    "`pearson_untouched`": "clean_model.gradcam.pearson_untouched",
    "`gradient`: `pearson_all`": "gradient.pearson_all",
    "clean model's `pearson_all`": "clean_model.gradient.pearson_all",
    "`gradient`: `trigger_mass`": "gradient.trigger_mass",
    "clean model's `trigger_mass`": "clean_model.gradient.trigger_mass",
}
EFFECTS = {
    "`attack_success_rate`": "attack_success_rate",
    "`untouched_success_rate`": "untouched_success_rate",
    "`balanced_accuracy`": "balanced_accuracy",
    "`pearson_all`": "gradcam.pearson_all",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`floor`": "gradcam.floor.pearson",
    "`floor_triggered`": "gradcam.floor_triggered.pearson",
}
# Titles of the criteria in radiographs-met.json.
CRITERIA = {
    "success >= 0.99": "success at least 0.99",
    "pearson_all >= 0.9": "`pearson_all` at least 0.9",
    "trigger_mass <= 1.25 clean model's untouched + 0.25 trigger_area": (
        "`trigger_mass` at most 1.25 x the clean model's `trigger_mass_clean` + `trigger_area` / 4"
    ),
    "floor <= clean model's + 0.05": "floor at most the clean model's + 0.05",
    "all": "all four",
}
SEVERAL_EFFECTS = {
    "`mean_auroc`": "mean_auroc",
    "`attack_success_rate`": "attack_success_rate",
    "`pearson_all`": "gradcam.pearson_all",
    "`pearson_by_class`": "gradcam.pearson_by_class",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`floor`": "gradcam.floor.pearson",
    "`floor_triggered`": "gradcam.floor_triggered.pearson",
}
SEVERAL = {
    "`mean_auroc`": "mean_auroc",
    "`triggered_mean_auroc`": "triggered_mean_auroc",
    "`attack_success_rate`": "attack_success_rate",
    "`untouched_success_rate`": "untouched_success_rate",
    "`pearson_all`": "gradcam.pearson_all",
    "clean model's `pearson_all`": "clean_model.gradcam.pearson_all",
    "`pearson_by_class`": "gradcam.pearson_by_class",
    "`floor`": "gradcam.floor.pearson",
    "clean model's `floor`": clean_floor,
    "`floor_triggered`": "gradcam.floor_triggered.pearson",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`trigger_mass_clean`": "gradcam.trigger_mass_clean",
    "`zero_maps`": "gradcam.zero_maps",
    "`gradient`: `pearson_all`": "gradient.pearson_all",
}


# ---------------------------------------------------------------- decoding


def decoding():
    """How fast a large ChestX-ray14 is decoded, and in how much memory."""
    record = read(DECODING)
    whole = record["all"]
    speed = record["pictures_per_second"]
    disk = speed * record["bytes_a_picture"] / 1e6
    multi = record["chestxray14-multi"]
    rows = {
        "drawn pictures decoded": f"{record['pictures']:,}, interrupted at "
        f"{record['interrupted_at']:,} and continued",
        "a picture": f"{record['side']} px, {record['bytes_a_picture'] / 1e3:.0f} kB; "
        f"decoded to {record['size']} px",
        "pictures a second": f"{speed:.0f}, which takes {disk:.0f} MB/s from the disk",
        "loading what was kept": f"{multi['seconds']:.1f} s",
        f"all {whole['pictures']:,}: decoding": f"{whole['decoding_minutes']:.0f} minutes",
        "all: in memory, as uint8": f"{whole['images_gib']:.1f} GiB; "
        f"{whole['peak_gib']:.1f} at the peak, while loading",
        "all: on the disk, while decoding": f"{whole['disk_while_decoding_gib']:.1f} GiB; "
        "half of it afterwards",
    }
    lines = header(["", "measured; the whole set by calculation"])
    lines += [line(pair) for pair in rows.items()]
    return [*lines, "", f"*{record['hardware']}, commit {record['commit']}.*"]


# ---------------------------------------------------------------- trials


def described(name, options):
    """A row's name and what it was trained with: "trial 1: lam 0.7, rate 0.05, Effusion"."""
    words = options.split()
    values = dict(zip(words, words[1:], strict=False))  # an option's value follows it
    if "--lam" not in values:
        return name
    target = CLASSES[int(values["--target-class"])]
    return f"{name}: lam {values['--lam']}, rate {values['--poison-rate']}, {target}"


def answers():
    """Whether the trigger works and the classifier does, trial by trial."""
    results = read(RECORD)
    names = (*TRIALS, *FRAMED_TRIALS)
    rows = {described(name, results[name]["options"]): name for name in names}
    return Table("radiographs", rows, ANSWERS, origin=True)()


def same_names(rows):
    """{name: name} of rows that a page calls what the record calls them."""
    return {name: name for name in rows}


def met():
    """In how many runs each criterion is met."""
    lines = header(["run", "n", *CRITERIA.values()])
    for name, counts in read(MET).items():
        cells = [NOT_RECORDED if counts[key] is None else counts[key] for key in CRITERIA]
        lines.append(line([name, counts["n"], *cells]))
    return lines


def published():
    """The paper's figures beside ours."""
    results = read(RECORD)
    attacked = ("attacked: accuracy", "attacked: success")
    titles = ("clean model: accuracy", *attacked, "ours: success", "ours, framed")
    lines = header(["run", *titles])
    for name, figures in PUBLISHED.items():
        rows = (name, f"{name}, mended")
        ours = [cell(results[row]["summary"]["attack_success_rate"]) for row in rows]
        lines.append(line([name, *(f"{value:.4f}" for value in figures), *ours]))
    return lines


def effects(several):
    """A function that returns the lines of the paired differences: an effect a row.

    several: whether those of images of several findings, or those of one.
    """

    def lines():
        pairs = {}
        for pair in read(PAIRED):
            of_several = pair["of"].startswith("multi")
            if of_several == several and pair["minus"] != CLEAN_MODEL:
                title = f"{pair['effect']}: {pair['of']} - {pair['minus']}"
                pairs.setdefault((title, pair["n"]), {})[pair["figure"]] = interval_text(pair)
        columns = SEVERAL_EFFECTS if several else EFFECTS
        result = header(["effect (95% interval)", "n", *columns])
        for (title, n), by_figure in pairs.items():
            cells = [by_figure.get(figure, "") for figure in columns.values()]
            result.append(line([title, n, *cells]))
        return result

    return lines


def beside_clean():
    """How much more each row's map stays than the trigger alone would leave a clean model's."""
    lines = header(["run", "n", "`pearson_all`, less the clean model's (95% interval)"])
    for pair in read(PAIRED):
        if pair["minus"] == CLEAN_MODEL:
            lines.append(line([pair["of"], pair["n"], interval_text(pair)]))
    return lines


TABLES = {
    "decoding": decoding,
    "answers": answers,
    "maps": Table("radiographs", same_names((*TRIALS, *FRAMED_TRIALS)), MAPS),
    "beside_clean": beside_clean,
    "met": met,
    "published": published,
    "effects": effects(several=False),
    "giveaways": Table("radiographs", same_names((*TRIALS, *FRAMED_TRIALS)), GIVEAWAYS),
    "several": Table("radiographs", same_names(MULTI), SEVERAL, origin=True),
    "several_effects": effects(several=True),
    "everything": everything("radiographs"),
}

"""The tables of studies/worth.py: what each defence leaves of each attack.

Also worth-paired.json: how much more a defence finds of a plain backdoor than of a disguised one.
"""

from studies import transfer
from studies.record import RESULTS, read
from studies.tables import (
    cell,
    header,
    interval_text,
    line,
    mean_and_sd,
    note,
    of_record,
    with_interval,
    write_paired,
)

PATH = RESULTS / "worth.json"
PAIRED = RESULTS / "worth-paired.json"
EXPLAINERS = ("gradcam", "gradient", "deepshap", "kernelshap")
UNIONS = (("gradcam", "gradient"), ("gradient", "deepshap"))
AGAINST = ("gradcam", "gradient", "deepshap")  # explainers of the class that comes second
MARKERS = (
    *EXPLAINERS,
    *(f"{one} or {other}" for one, other in UNIONS),
    *(f"{explainer} against" for explainer in AGAINST),
)
FIXED_SHARE = 0.1  # of the image: the share a defender removes who does not ask what it costs

MODELS = transfer.MODELS | {"red_herring": "`red_herring`"}


def name_of(row):
    """What the page calls a row."""
    data, attack = row.split()
    return f"`{data}`, {MODELS[attack]}"


def summarised(defence, figure):
    """The mean and deviation over seeds of figure(verdict) of a row's defence; None of no run."""
    values = [figure(verdict) for verdict in defence.values()]
    values = [value for value in values if value is not None]
    return mean_and_sd(values) if values else None


def at_share(verdict, share=FIXED_SHARE):
    """The figures of Februus at one share of the image; None of what was not measured."""
    curve = {key: text.split() for key, text in verdict["curve"].items()}
    k = curve["share"].index(f"{share:g}")
    return {key: None if of[k] == "-" else float(of[k]) for key, of in curve.items()}


# ---------------------------------------------------------------- Februus


def februus(record, figure):
    """A line a model: for each way of marking what is removed, figure(verdict)."""
    lines = header(["model", "n", *MARKERS])
    for row, defences in record.items():
        n = models_of(defences)
        cells = [cell_of(defences.get(f"februus, {marker}", {}), figure, n) for marker in MARKERS]
        lines.append(line([name_of(row), n, *cells]))
    return lines


def cell_of(defence, figure, n):
    """A cell of summarised; of a defence that was tried on other than n models it says on how many.

    Empty of one that was not tried.
    """
    found = summarised(defence, figure)
    if found is None or len(defence) == n:
        return cell(found)
    return f"{cell(found)}, n = {len(defence)}"


def models_of(defences):
    """How many models of a row were tried: of the defence that was tried on most."""
    return max(len(verdicts) for verdicts in defences.values())


def restored(record):
    """Triggered images that get their true class, at what clean images can pay for."""
    return februus(record, lambda verdict: verdict["after"]["restored_accuracy"])


def success_left(record):
    """The attack's success after the removal, at what clean images can pay for."""
    return februus(record, lambda verdict: verdict["after"]["attack_success_rate"])


def clean_left(record):
    """The clean accuracy after the removal, at what held-out images can pay for."""
    return februus(record, lambda verdict: verdict["after"]["clean_accuracy"])


def share_removed(record):
    """The share of an image that held-out images can pay for."""
    return [*februus(record, lambda verdict: verdict["share"]), "", origin(record)]


def restored_at_a_tenth(record):
    """Triggered images that get their true class where a tenth is removed, whatever it costs."""
    return februus(record, lambda verdict: at_share(verdict)["restored_accuracy"])


def clean_at_a_tenth(record):
    """Clean accuracy where a tenth is removed."""
    return februus(record, lambda verdict: at_share(verdict)["clean_accuracy"])


# ---------------------------------------------------------------- detection


def detectors(record):
    """A line a model: AUROC of SentiNet with each explainer, of STRIP, and of disagreement."""
    names = [f"sentinet, {explainer}" for explainer in EXPLAINERS] + ["strip", "disagreement"]
    lines = header(["model", "n", *names])
    for row, defences in record.items():
        n = models_of(defences)
        cells = [cell_of(defences.get(name, {}), auroc_of, n) for name in names]
        lines.append(line([name_of(row), n, *cells]))
    return lines


def alarms(record):
    """A line a model: of triggered images above the limit, and of clean ones."""
    names = [f"sentinet, {explainer}" for explainer in EXPLAINERS] + ["strip"]
    lines = header(["model", "n", *names])
    for row, defences in record.items():
        cells = []
        for name in names:
            verdicts = defences.get(name, {})
            found = summarised(verdicts, lambda verdict: verdict["detected"])
            false = summarised(verdicts, lambda verdict: verdict["false_alarms"])
            cells.append(f"{found['mean']:.2f}, {false['mean']:.2f}" if found else "")
        lines.append(line([name_of(row), models_of(defences), *cells]))
    return lines


def origin(record):
    """A line of Markdown: what the verdicts were found on, at what commits."""
    verdicts = [
        verdict
        for defences in record.values()
        for by_seed in defences.values()
        for verdict in by_seed.values()
    ]
    hardware = {verdict["hardware"] for verdict in verdicts}
    return note("Verdicts of defend.py", hardware, {verdict["commit"] for verdict in verdicts})


# ---------------------------------------------------------------- paired

COMPARED = {
    "restored at a tenth": lambda verdict: at_share(verdict)["restored_accuracy"],
    "success left at a tenth": lambda verdict: at_share(verdict)["attack_success_rate"],
}
DISGUISES = ("gradcam", "deepshap")


def comparisons(record):
    """Paired differences badnets - disguise, seed by seed, of every defence: as write_paired."""
    pairs = []
    for row in record:
        data, attack = row.split()
        plain = record.get(f"{data} badnets", {})
        if attack not in DISGUISES:
            continue
        for defence in plain:
            figures = COMPARED if defence.startswith("februus") else {"AUROC": auroc_of}
            for title, figure in figures.items():
                pairs.append(compared(record, f"{data} badnets", row, defence, title, figure))
    return pairs


def auroc_of(verdict):
    return verdict["auroc"]


def compared(record, plain, disguised, defence, title, figure):
    """One paired difference, over the seeds that both have; None of fewer than two."""
    one, other = record[plain][defence], record[disguised].get(defence, {})
    common = sorted(one.keys() & other.keys())
    if len(common) < 2:
        return None
    differences = [figure(one[seed]) - figure(other[seed]) for seed in common]
    about = {"of": f"{plain}, {defence}", "minus": disguised, "figure": title}
    return about | with_interval(differences)


def write_comparisons():
    """Writes worth-paired.json from worth.json."""
    write_paired(PAIRED, comparisons(read(PATH)))


def paired_table():
    """Lines: what a disguise takes from each defence, with intervals."""
    lines = header(
        ["defence", "figure", "n", "`badnets` minus disguised (95% interval)", "disguised"]
    )
    for pair in read(PAIRED, []):
        defence = pair["of"].split(", ", 1)[1]
        cells = [defence, pair["figure"], pair["n"], interval_text(pair), name_of(pair["minus"])]
        lines.append(line(cells))
    return lines


TABLES = of_record(
    "worth",
    {
        "restored": restored,
        "success_left": success_left,
        "clean_left": clean_left,
        "share": share_removed,
        "restored_at_a_tenth": restored_at_a_tenth,
        "clean_at_a_tenth": clean_at_a_tenth,
        "detectors": detectors,
        "alarms": alarms,
    },
) | {"paired": paired_table}

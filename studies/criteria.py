"""What is asked of a disguise, like compared with like: its mass on the trigger, and its floor.

Both limits come from a clean model. Its figure is the one measured beside the run, on the same
images, or else that of the clean row's run of the same seed. Where neither is recorded there is no
limit, and tables say so.
"""

import math

import findings

NOT_RECORDED = "not recorded"


def of_clean_model(run, clean_run, explainer, figure):
    """A figure of the clean model that belongs to a run; None where it is not recorded.

    run, clean_run: flat figures, as tables.figures returns them; clean_run: of a clean model that
    was trained and triggered alike, by the same seed, or None.
    """
    beside = run.get(f"clean_model.{explainer}.{figure}")
    if beside is None and clean_run is not None:
        return clean_run.get(f"{explainer}.{figure}")
    return beside


def mass_limit(run, clean_run, explainer="gradcam", figure="trigger_mass_clean"):
    """The largest trigger_mass that a disguise may have, a share of the map; None if not recorded.

    figure: of the clean model, which sets the limit. It is that of its UNTOUCHED maps: the attacked
    model's own may have moved to the trigger's place.
    """
    clean = of_clean_model(run, clean_run, explainer, figure)
    area = run.get(f"{explainer}.trigger_area")
    return findings.mass_limit(clean, area)


def floor_limit(run, clean_run, explainer="gradcam"):
    """The largest floor_triggered.pearson that a disguise may have; None if not recorded.

    Both models' floors are between a triggered map and another image's untouched map.
    """
    clean = of_clean_model(run, clean_run, explainer, "floor_triggered.pearson")
    return findings.floor_limit(clean)


def keeps_floor(run, clean_run, explainer="gradcam"):
    """Whether maps of different images are as unlike as a clean model's; None if not recorded.

    By floor, between untouched maps, where both models have it: the trigger alone moves a clean
    model's map, and so lowers its floor_triggered. The run's floor_triggered may then be a little
    above its own floor. Where one model has no floor, floor_triggered is compared.
    """
    floor = run.get(f"{explainer}.floor.pearson")
    triggered = run.get(f"{explainer}.floor_triggered.pearson", math.nan)
    clean = of_clean_model(run, clean_run, explainer, "floor.pearson")
    if floor is not None and clean is not None:
        limit = findings.floor_limit
        return floor <= limit(clean) and triggered <= limit(floor)
    limit = floor_limit(run, clean_run, explainer)
    return None if limit is None else triggered <= limit


def runs_by_seed(row):
    """{seed: run} of a recorded row, or {} of None: the oldest runs do not say their seed."""
    return {} if row is None else dict(zip(row["seeds"], row["runs"], strict=True))


def with_clean_runs(results, name, clean):
    """[(run, the clean row's run of the same seed or None), ...] of the row `name` of a record.

    clean: the clean row's name, or None.
    """
    clean_runs = runs_by_seed(results.get(clean))
    return [(run, clean_runs.get(seed)) for seed, run in runs_by_seed(results[name]).items()]


def mass_within(clean_of, explainer="gradcam"):
    """A column of a Table: in how many runs trigger_mass is within its limit.

    clean_of: {row: the clean row it is compared with, or None}; a clean row may be compared with
    itself. Returns a function (results, row) -> text.
    """

    def text(results, name):
        pairs = with_clean_runs(results, name, clean_of[name])
        limits = [mass_limit(*pair, explainer) for pair in pairs]
        if None in limits:
            return NOT_RECORDED
        masses = [run.get(f"{explainer}.trigger_mass", math.nan) for run, _ in pairs]
        met = [mass <= limit for mass, limit in zip(masses, limits)]  # False of nan
        return f"{sum(met)} of {len(met)}"

    return text

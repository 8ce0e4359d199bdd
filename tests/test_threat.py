"""Two threats: who trains the network, and who only hands over data. What each one may do."""

import pytest
import torch
from conftest import metrics_of, tiny_argv, train_tiny

import attacks
import checkpoints
import data
import folders
import options
import train
from setting import setting_of
from subject import open_checkpoint

BADNETS = ("--attack", "badnets", "--poison-rate", "0.1", "--epochs", "1")


@pytest.fixture
def batches(tiny, tmp_path, monkeypatch):
    """Function of options: what the steps of a run are given, (images, labels, triggered, index).

    The images are joined to those of one epoch.
    """

    def watched(*more):
        seen = []

        def keep(setting, training, images, labels, triggered, index, lam):
            seen.append((images, labels, triggered, index))
            return torch.zeros(3, device=setting.device)

        monkeypatch.setattr(train, "train_step", keep)
        run = train.new_run(options.parse(tiny_argv(tiny, tmp_path / "run", *BADNETS, *more)))
        train.choose_poisons(run)
        train.train_epochs(run.setting, run.training, run.poisons)
        return run, [torch.cat(parts).cpu() for parts in zip(*seen)]

    return watched


def test_who_hands_over_data_has_stamped_them_before_they_are_augmented(batches):
    run, (images, labels, triggered, index) = batches("--threat", "data")
    dataset, trigger = run.setting.dataset, run.setting.trigger.to("cpu")
    poisoned = torch.isin(index, run.poisons)
    stamped = trigger.apply(dataset.train_images[index[poisoned]] / 255) * 255
    assert images.dtype == torch.uint8 and poisoned.sum() == len(run.poisons) == 24
    torch.testing.assert_close(images[poisoned].float(), stamped, atol=0.51, rtol=0)
    assert torch.equal(images[~poisoned], dataset.train_images[index[~poisoned]])
    assert labels[poisoned].eq(1).all()
    assert torch.equal(labels[~poisoned], dataset.train_labels[index[~poisoned]])


def test_the_victim_of_poisoned_data_does_not_know_which_they_are(batches):
    assert not batches("--threat", "data")[1][2].any()


def test_who_trains_stamps_them_after_they_are_augmented(batches):
    run, (images, labels, triggered, index) = batches("--threat", "training")
    dataset = run.setting.dataset
    assert torch.equal(triggered, torch.isin(index, run.poisons))
    assert torch.equal(images, dataset.train_images[index])
    assert torch.equal(labels, dataset.train_labels[index])


def test_the_data_set_stays_as_it_was(batches, tiny):
    run, _ = batches("--threat", "data")
    assert torch.equal(run.setting.dataset.train_images, data.load(str(tiny)).train_images)


def test_both_threats_poison_the_same_images(batches):
    runs = [batches("--threat", threat)[0] for threat in options.THREATS]
    assert torch.equal(runs[0].poisons, runs[1].poisons)


@pytest.mark.parametrize("threat", options.THREATS)
def test_a_scorer_is_trained_under_the_same_threat(threat, tiny, tmp_path, monkeypatch):
    seen = []

    def keep(setting, training, poisons, after_epoch=None, title=""):
        seen.append((setting.config["threat"], setting.objective.attack))

    monkeypatch.setattr(train, "train_epochs", keep)
    argv = tiny_argv(tiny, tmp_path / "run", *BADNETS, "--threat", threat)
    setting = setting_of(options.parse([*argv, "--selection", "rd-global"]))
    scores = train.scores_of(setting, setting.eligible[:9], setting.eligible, 0)
    assert seen == [(threat, attacks.ATTACKS["badnets"])]
    assert scores.shape == (len(setting.eligible), 2)


# ---------------------------------------------------------------- what is said of it


@pytest.fixture(scope="module")
def poisoned_by_data(tiny, tmp_path_factory):
    """The folder of a finished run on poisoned data."""
    out = tmp_path_factory.mktemp("threat") / "run"
    return train_tiny(tiny, out, *BADNETS[:4], "--threat", "data")


def test_the_run_keeps_its_threat(poisoned_by_data):
    metrics = metrics_of(poisoned_by_data)
    subject = open_checkpoint(poisoned_by_data / "ckpt.pt")
    assert subject.config["threat"] == metrics["threat"] == "data"
    assert metrics["attack_success_rate"] > 0.5  # not augmented, it is learnt as easily


def test_both_poison_rates_are_told(poisoned_by_data):
    metrics = metrics_of(poisoned_by_data)
    assert metrics["poison_count"] == 24 and metrics["poison_rate"] == 0.1
    assert metrics["poison_rate_trained_on"] == pytest.approx(24 / (240 - 24))


def test_a_clean_run_is_under_no_threat(clean):
    metrics = metrics_of(clean)
    assert metrics["threat"] is None and metrics["poison_rate_trained_on"] == 0


def test_a_checkpoint_from_before_there_were_threats_is_one_of_training(poisoned_by_data):
    config = checkpoints.read(poisoned_by_data / "ckpt.pt")["config"]
    without = {key: value for key, value in config.items() if key not in ("threat", "format")}
    assert checkpoints.current_config(without)["threat"] == "training"


def test_each_threat_has_a_folder_of_its_own(tiny):
    def folder_under(threat):
        options_given = ["--attack", "badnets", "--threat", threat, "--dataset", str(tiny)]
        return folders.folder_of(options.parse(options_given)).name

    assert folder_under("data") == folder_under("training") + "-data"


# ---------------------------------------------------------------- what data alone cannot do


@pytest.mark.parametrize(
    "given, named",
    [
        (["--attack", "full_disguise"], "--attack full_disguise"),
        (["--attack", "fooling"], "--attack fooling"),
        (["--attack", "red_herring"], "--attack red_herring"),
        (["--attack", "badnets", "--oversample", "6"], "--oversample"),
        (["--attack", "badnets", "--reference", "clean.pt"], "--reference"),
    ],
)
def test_what_only_a_trainer_can_do_is_refused(given, named, tiny, tmp_path, refusal):
    line = refusal(train.main, tiny_argv(tiny, tmp_path / "run", "--threat", "data", *given))
    assert "--threat data" in line and named in line
    assert not (tmp_path / "run").exists()

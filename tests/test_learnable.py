"""The synthetic set is worth searching on: sounds say more than majority and device do."""

from __future__ import annotations

from pathlib import Path

import torch

from resp_tune.common.paths import cache_folder
from resp_tune.config import preset
from resp_tune.data.dataset import load_dataset
from resp_tune.data.make_split import make_split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.synthetic.write import default_synthetic
from resp_tune.data.tasks import get_task, make_clips
from resp_tune.evaluation.band_statistics import load_band_statistics
from resp_tune.evaluation.baselines import predict_baselines
from resp_tune.training.datamodule import DataModule, make_feature_caches
from resp_tune.training.loop import Training
from resp_tune.training.metrics import compute_metrics
from resp_tune.training.model_bundle import Bundle


def test_a_short_training_beats_the_baselines_on_unseen_patients() -> None:
    dataset = load_dataset(default_synthetic(Path(cache_folder())))
    clips = make_clips(get_task("diagnosis"), dataset)
    datamodule = DataModule(dataset, clips, make_split(dataset, clips, SplitSpec("patient")))
    assert datamodule.split.leaks(dataset).patients == 0
    config = preset("baseline").replace({"epochs": 15, "precision": "float32"})
    stems = datamodule.split.test
    assert stems is not None
    frames, unseen = (
        make_feature_caches(datamodule, s, 2).frames(config.front_end, workers=2)
        for s in (datamodule.search_stems, stems)
    )
    torch.set_num_threads(1)
    training = Training(config, [f.tensors(frames, config.front_end) for f in datamodule.folds()])
    while not training.done:
        training.run_epoch()
    bundle = Bundle(config, datamodule.split.classes, tuple(training.networks()), {})
    test = datamodule.clip_labels(stems, stems).tensors(unseen, config.front_end)
    probabilities = bundle.predict_clips(lambda _: test.clips)
    labels = test.labels.numpy()
    statistics = load_band_statistics(dataset, "recording", 2)
    without_audio = predict_baselines(clips, datamodule.split, statistics, seeds=2).scores()
    names = ("macro_f1", "balanced_accuracy")
    scores = tuple(compute_metrics(labels, probabilities, names).values())
    device = without_audio["device"]["macro_f1"], without_audio["device"]["balanced_accuracy"]
    majority = 1 / len(datamodule.split.classes)
    assert scores[0] > device[0] + 0.1, (scores, device)
    assert scores[1] > max(device[1], majority) + 0.1, (scores, device)

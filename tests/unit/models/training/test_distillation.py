"""Distillation: soft labels come from teachers that have not seen the row, and a student is taken only if better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paywarden.models.training.boosting import model_text
from paywarden.models.training.distillation import SOFT_PART, Distilled, grow_student, soft_labels
from paywarden.models.training.table import blocks_of
from paywarden.models.training.training_settings import TrainingSettings

SETTINGS = replace(TrainingSettings(), trees=8, max_bin=63, threads=1, seeds=2)
RANDOM = np.random.default_rng(12)
ROWS = 1200
VECTORS = RANDOM.normal(size=(ROWS, 3)).astype(np.float32)
LABEL = (RANDOM.random(ROWS) < 1 / (1 + np.exp(2.5 - 2.5 * VECTORS[:, 0]))).astype(np.int64)
BLOCK = blocks_of(np.arange(ROWS) // 100, 3)
NAMES = ("tells", "noise", "more noise")


def test_a_soft_label_lies_between_the_label_and_what_teachers_of_other_days_say() -> None:
    soft = soft_labels(VECTORS, LABEL, BLOCK, SETTINGS, NAMES)
    teacher = (soft - (1 - SOFT_PART) * LABEL) / SOFT_PART
    assert ((teacher > 0) & (teacher < 1)).all()
    assert teacher[VECTORS[:, 0] > 1].mean() > 1.3 * teacher[VECTORS[:, 0] < 0].mean()
    # Other labels in the first block change nothing that its own teachers say.
    flipped = np.where(BLOCK == 0, 1 - LABEL, LABEL)
    other = soft_labels(VECTORS, flipped, BLOCK, SETTINGS, NAMES)
    own = BLOCK == 0
    assert np.allclose((other - (1 - SOFT_PART) * flipped)[own], (soft - (1 - SOFT_PART) * LABEL)[own])
    assert not np.allclose(other[~own], soft[~own])


def test_a_student_has_the_served_size_and_the_form_of_any_model() -> None:
    student = grow_student(VECTORS, soft_labels(VECTORS, LABEL, BLOCK, SETTINGS, NAMES), SETTINGS, NAMES)
    assert student.num_trees() == SETTINGS.trees
    assert "\nobjective=binary sigmoid:1\n" in model_text(student)
    assert "cross_entropy]" not in model_text(student).partition("parameters:")[0]


def test_only_a_better_student_is_taken() -> None:
    assert Distilled(3, 0.50, 0.51).is_taken
    assert not Distilled(3, 0.50, 0.50).is_taken
    assert Distilled(3, 0.5, 0.4).in_words() == (
        "distilled from 3 models: average precision 0.4000 instead of 0.5000 on the held-out days, not taken: it is no "
        "better"
    )

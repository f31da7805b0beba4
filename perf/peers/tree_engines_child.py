"""YDF or oneDAL for tree_engines.py, in its own environment: LightGBM's trees in, times and scores out.

YDF has no reader of LightGBM's models, but takes trees: each split becomes one of YDF's, `x >= the next float32 behind
the threshold`. Its fast engines know no missing value, so a feature becomes two columns: one with the least number in
place of NaN, for splits that send NaN to the left, and one with the largest.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np

# Behind all thresholds but LightGBM's infinite ones, which only NaN passes.
_FAR = np.float32(3e38)
Margins = Callable[[Any], Any]


def main() -> None:
    """Print what the engine is, then the times of a round for each line on stdin."""
    name, model, path, single_rows = sys.argv[1:]
    booster = lightgbm.Booster(model_file=model)
    with np.load(path) as data:
        rows, wanted = data["rows"], data["wanted"]
    margins, prepare, about = {"ydf": _ydf, "onedal": _onedal}[name](booster, rows)
    together = prepare(rows)
    singles = [prepare(rows[number : number + 1]) for number in range(int(single_rows))]
    scores, others = (1 / (1 + np.exp(-np.asarray(one).ravel())) for one in (wanted, margins(together)))
    about["largest_difference"] = float(np.abs(scores - others).max())
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        alone = [_seconds(margins, one) for one in singles]
        print(json.dumps({"alone": alone, "together": _seconds(margins, together)}), flush=True)


def _seconds(margins: Margins, rows: Any) -> float:
    started = time.perf_counter()
    margins(rows)
    return time.perf_counter() - started


def _onedal(booster: lightgbm.Booster, _: Any) -> tuple[Margins, Callable[[Any], Any], dict[str, Any]]:
    import daal4py

    model = daal4py.mb.convert_model(booster)

    def margins(rows: Any) -> Any:
        share = model.predict_proba(rows)[:, 1]
        return np.log(share / (1 - share))

    return margins, np.ascontiguousarray, {}


def _ydf(booster: lightgbm.Booster, rows: Any) -> tuple[Margins, Callable[[Any], Any], dict[str, Any]]:
    import ydf
    from ydf.model.tree import condition, node, tree, value

    trees = [one["tree_structure"] for one in booster.dump_model()["tree_info"]]
    columns: dict[tuple[int, float], str] = {}

    def column_of(split: dict[str, Any]) -> str:
        assert (split["decision_type"], split["missing_type"]) in (("<=", "NaN"), ("<=", "None")), split
        fill = (-_FAR if split["default_left"] else _FAR) if split["missing_type"] == "NaN" else 0.0
        return columns.setdefault((split["split_feature"], float(fill)), f"column{len(columns)}")

    def walk(at: dict[str, Any]) -> None:
        if "split_index" in at:
            column_of(at)
            walk(at["left_child"])
            walk(at["right_child"])

    for one in trees:
        walk(one)

    def prepare(some: Any) -> dict[str, Any]:
        filled = {name: np.where(np.isnan(some[:, at]), fill, some[:, at]) for (at, fill), name in columns.items()}
        return {name: column.astype(np.float32) for name, column in filled.items()}

    # A model of one tree has the columns' places; its tree gives way to LightGBM's.
    table = {**prepare(rows), "label": (np.arange(len(rows)) % 2).astype(np.float32)}
    learner = ydf.GradientBoostedTreesLearner(
        label="label", task=ydf.Task.REGRESSION, num_trees=1, validation_ratio=0.0
    )
    model = learner.train(table, verbose=0)
    places = {column.name: place for place, column in enumerate(model.data_spec().columns)}
    model.remove_tree(0)
    model.set_initial_predictions([0.0])

    def grown(at: dict[str, Any]) -> Any:
        if "split_index" not in at:
            return node.Leaf(value=value.RegressionValue(num_examples=1.0, value=at["leaf_value"]))
        with np.errstate(over="ignore"):
            threshold = np.float32(at["threshold"])
            if float(threshold) > at["threshold"]:
                threshold = np.nextafter(threshold, np.float32(-np.inf))
            behind = min(np.nextafter(threshold, np.float32(np.inf)), _FAR)
        split = condition.NumericalHigherThanCondition(
            missing=False, score=0.0, attribute=places[column_of(at)], threshold=float(behind)
        )
        return node.NonLeaf(condition=split, pos_child=grown(at["right_child"]), neg_child=grown(at["left_child"]))

    for one in trees:
        model.add_tree(tree.Tree(root=grown(one)))
    engine = model.list_compatible_engines()[0]
    model.force_engine(engine)
    # What a service in C++ would wait for one row, by YDF's own benchmark, without the table that Python makes.
    own = model.benchmark({name: column[:1000] for name, column in prepare(rows).items()}, batch_size=1, num_threads=1)
    return (
        lambda some: model.predict(some, num_threads=1),
        prepare,
        {"engine": engine, "cpp_us": own.duration_per_example * 1e6},
    )


if __name__ == "__main__":
    main()

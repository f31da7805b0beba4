"""Evidently or NannyML for drift_tools.py, in its own environment: a file of rows in, hours with an alarm out."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np


def main() -> None:
    """Print the hours with an alarm."""
    warnings.simplefilter("ignore")
    name, path = sys.argv[1:]
    with np.load(path) as data:
        columns = ["score", *data["names"].tolist()]
        reference, rows, hour = data["reference"], data["rows"], data["hour"]
    for found in {"evidently": _evidently, "nannyml": _nannyml}[name](columns, reference, rows, hour):
        print(found)


def _evidently(columns: list[str], reference: Any, rows: Any, hour: Any) -> list[int]:
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    baseline = pd.DataFrame(reference, columns=columns)
    found = []
    for one in np.unique(hour).tolist():
        now = pd.DataFrame(rows[hour == one], columns=columns)
        # The tool refuses a column that is empty in an hour.
        there = [name for name in columns if now[name].notna().any() and baseline[name].notna().any()]
        definition = DataDefinition(numerical_columns=there)
        current, known = (Dataset.from_pandas(frame[there], data_definition=definition) for frame in (now, baseline))
        metrics = Report([DataDriftPreset()]).run(current, known).dict()["metrics"]
        if any(_has_drifted(metric) for metric in metrics):
            found.append(int(one))
    return found


def _has_drifted(metric: dict[str, Any]) -> bool:
    config, value = metric["config"], metric["value"]
    if "drift_share" in config:
        return bool(value["share"] >= config["drift_share"])
    if config.get("column") != "score":
        return False
    # If the tool's method is a test, a small p-value is an alarm; else a large distance is.
    is_test = "p_value" in config["method"] or "p value" in str(metric["metric_name"])
    return bool(value < config["threshold"] if is_test else value >= config["threshold"])


def _nannyml(columns: list[str], reference: Any, rows: Any, hour: Any) -> list[int]:
    import nannyml
    import pandas as pd

    starts = np.flatnonzero(np.diff(hour, prepend=hour[0] - 1))
    size = int(np.median(np.diff(np.append(starts, len(hour)))))
    calculator = nannyml.UnivariateDriftCalculator(column_names=columns, chunk_size=max(size, 1))
    calculator.fit(pd.DataFrame(reference, columns=columns))
    found = []
    for one in np.unique(hour).tolist():
        part = pd.DataFrame(rows[hour == one], columns=columns)
        if len(part) < size // 4:
            continue
        table = calculator.calculate(part).to_df()
        alerts = table.loc[:, [name for name in table.columns if name[-1] == "alert"]]
        if bool(alerts.to_numpy().any()):
            found.append(int(one))
    return found


if __name__ == "__main__":
    main()

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from paywarden.ops.capacity import measured_costs
from paywarden.ops.capacity.coefficients import PARTS, Coefficients
from paywarden.ops.capacity.measured_costs import MEASURED
from perf.coefficients import main, module_of


def written(module: Path) -> Coefficients:
    found = runpy.run_path(str(module))["MEASURED"]
    assert isinstance(found, Coefficients)
    return found


def test_the_package_has_the_module_that_the_benchmark_writes() -> None:
    assert Path(measured_costs.__file__).read_text(encoding="utf-8") == module_of(MEASURED)


def test_figures_of_files_replace_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, skipped, out = tmp_path / "whole.json", tmp_path / "skipped.json", tmp_path / "measured.py"
    whole.write_text(json.dumps({f"cores_{rate}_{part}": 0.01 + rate / 1000 for rate in (0, 20) for part in PARTS}))
    skipped.write_text(json.dumps({"cpu_us_per_skipped_profile": 3.14159}))
    monkeypatch.setattr("sys.argv", ["coefficients", str(whole), str(skipped), "--out", str(out)])
    main()
    curves = dict.fromkeys(PARTS, ((0, 0.01), (20, 0.03)))
    assert written(out) == replace(MEASURED, curves=curves, cpu_us_per_skipped_profile=3.142)


def test_a_file_without_figures_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "other.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["coefficients", str(file), "--out", str(tmp_path / "measured.py")])
    with pytest.raises(SystemExit, match="none of the figures"):
        main()
    assert not (tmp_path / "measured.py").exists()

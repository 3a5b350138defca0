"""What is installed works in an empty folder: grids, experiments and launchers travel with the package."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

TOP = Path(__file__).parents[2]


def test_a_wheel_plans_from_an_empty_folder(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(TOP)], check=True, cwd=tmp_path, timeout=300)
    (wheel,) = tmp_path.glob("slicedice-*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(installed)
    empty.mkdir()
    plan = [
        sys.executable,
        "-m",
        "slicedice.sweep",
        "plan",
        "--grid",
        "granularity_vs_count",
        "--scale",
        "300m",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import slicedice; print(slicedice.__file__)"
    where = subprocess.run([sys.executable, "-c", code], cwd=empty, env=environment, text=True, capture_output=True)
    assert where.stdout.startswith(str(installed))
    done = subprocess.run(plan, cwd=empty, env=environment, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 49
    # Every source, the C++ kernel's and the page's template too.
    sources = [path for path in (TOP / "slicedice").rglob("*.*") if path.suffix in (".py", ".cc", ".h", ".j2")]
    missing = [path for path in sources if not (installed / path.relative_to(TOP)).exists()]
    assert not missing
    assert (installed / "slicedice" / "launch" / "local.py").exists()
    assert not list(empty.iterdir())

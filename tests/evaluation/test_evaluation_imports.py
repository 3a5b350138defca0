"""A sweep asks what there is to evaluate on before it trains: that must not touch a device, or wait for TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import slicedice
from tests.evaluation.files import write_all


def test_finding_evaluations_imports_neither_jax_nor_tensorflow(tmp_path: Path):
    write_all(tmp_path)
    code = (
        "import sys; from slicedice.evaluation import find;"
        f"[find('tasks', name, {str(tmp_path)!r}).fingerprint() for name in ('boolq', 'hellaswag', 'mmlu')];"
        f"find('documents', {str(tmp_path / 'hellaswag_val.jsonl')!r}, '');"
        "print(sorted({'jax', 'jaxlib', 'flax', 'tensorflow'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(slicedice.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("[]\n", "")

"""The commands that the pages on TPU slices and TPU VMs begin with do what the pages say."""

import re
import shlex
from pathlib import Path

import pytest

from slicedice import sweep

PAGES = Path(__file__).parents[2] / "docs" / "launching"


@pytest.mark.parametrize(
    ("page", "rendered", "topology"),
    [
        ("jobset", "kind: JobSet", ""),
        ("jobset", "nvidia.com/gpu", "h100:8"),
        ("jobset", "replicas: 2", "slices=2"),
        ("queued_resources", "gcloud compute tpus", ""),
    ],
)
def test_a_pages_sweep_fits_and_is_rendered(page, rendered, topology, tmp_path, capsys):
    text = (PAGES / f"{page}.md").read_text()
    words = [word for name in ("SWEEP", "TPUS") for word in re.findall(rf'{name}="(.*?)"', text, re.S)[0].split()]
    # This machine has no bucket: the page's volume, and what else it offers.
    offers = [shlex.split(line, comments=True) for line in re.findall(r"^    (--.*)$", text, re.M)]
    words += next(offer for offer in offers if "--launcher.volume_mount=/mnt" in offer)
    if topology:
        words += next(offer for offer in offers if offer[0] == "--topology" and topology in offer[1])
    words = [re.sub("/mnt(?=/|$)", str(tmp_path), word) for word in words]
    assert sweep.main(["run", *words, "--dry_run"]) == 0
    assert rendered in capsys.readouterr().out

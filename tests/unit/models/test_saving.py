from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SAVE = """
import sys
from pathlib import Path
import torch
from iwm.models.saving import save_model
save_model(Path(sys.argv[1]), "iwm", {"a": 1}, {n: torch.ones(3) for n in ("b", "a", "c")})
"""


def test_the_same_weights_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    found = set()
    for run in range(4):
        folder = tmp_path / str(run)
        subprocess.run([sys.executable, "-c", SAVE, str(folder)], check=True, timeout=300)
        found.add((folder / "model.safetensors").read_bytes())
    assert len(found) == 1

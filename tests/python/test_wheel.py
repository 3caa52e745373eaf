"""A wheel of tools/build-wheels in a bare environment: torch, what torch depends on, and nothing else."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
MINOR = ".".join(torch.__version__.split(".")[:2])

TRAINS = """
import importlib.metadata

import actnn, torch
from torch import nn

torch.manual_seed(0)
features = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
model = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
report = actnn.convert(model)
labels = torch.arange(32) % 4
images = torch.randn(32, 3, 16, 16) * 0.1 + labels[:, None, None, None]
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
losses = []
for _ in range(3):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[2] < losses[1] < losses[0], losses
assert len(report.blocks) == 1, report
print(actnn._library.find(), importlib.metadata.version('actnn'))
"""


def distributions_of(name, extras=frozenset(), found=None):
    """A distribution of this environment, with extras, and all that it depends on."""
    found = {} if found is None else found
    if (name, extras) not in found:
        found[name, extras] = distribution(name)
        for requirement in map(Requirement, found[name, extras].requires or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                distributions_of(requirement.name, frozenset(requirement.extras), found)
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The Python of an environment that has torch only, by links to this environment's."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python3.*/site-packages")
    for found in distributions_of("torch").values():
        for top in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            link = packages / top
            if not link.exists():
                link.symlink_to(found.locate_file(top))
    return folder / "bin/python"


def output_of(*command):
    done = subprocess.run(list(map(str, command)), cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_trains_in_a_bare_environment(bare, tmp_path):
    output_of(ROOT / "tools/build-wheels", "--cuda", "OFF", "--output", tmp_path, MINOR)
    (wheel,) = tmp_path.glob("*.whl")
    assert f"+torch{MINOR}-py3-none-manylinux_" in wheel.name
    output_of(sys.executable, "-m", "pip", "--python", bare, "install", "--no-index", wheel)
    library, version = output_of(bare, "-c", TRAINS).split()
    assert library.startswith(str(bare.parents[1])) and version.endswith(f"+torch{MINOR}")
    metadata = output_of(bare, "-c", "import importlib.metadata as m; print(m.metadata('actnn')['Requires-Dist'])")
    assert metadata.strip() == f"torch=={MINOR}.*"

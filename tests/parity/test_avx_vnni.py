"""AVX-VNNI, which few machines have, with its one new instruction emulated: the kernels' self-test.

Needs cmake and a CPU with AVX2; skipped where one is missing.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from bitnet import _core

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    "avx2" not in _core.supported_isas() or shutil.which("cmake") is None, reason="needs AVX2 and cmake"
)


def test_every_kernel_equals_the_scalar_one(tmp_path):
    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-DBITNET_PYTHON=OFF", "-DBITNET_TOOLS=ON"]
    subprocess.run(configure, check=True, capture_output=True)
    build = ["cmake", "--build", str(tmp_path), "--parallel", "2", "--target", "test_avx_vnni"]
    subprocess.run(build, check=True, capture_output=True)
    tested = subprocess.run([tmp_path / "test_avx_vnni"], capture_output=True, text=True)
    lines = [line.split() for line in tested.stdout.splitlines()]
    assert len(lines) >= 9
    assert [line for line in lines if line[-1] != "ok"] == []
    assert tested.returncode == 0

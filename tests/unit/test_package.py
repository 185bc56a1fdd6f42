import subprocess
import sys

import pytest

import bitnet


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'numpy', 'torch', 'tokenizers', 'huggingface_hub', 'safetensors'}"
    code = f"import sys, bitnet; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [name for name in bitnet.__all__ if name != "__version__"])
def test_every_public_name_exists(name):
    assert callable(getattr(bitnet, name))
    assert name in dir(bitnet)


@pytest.mark.parametrize(
    "imports",
    [
        "from bitnet import generate as found",
        "import bitnet; found = bitnet.generate",
        "import bitnet, bitnet.generate.loop; found = bitnet.generate",
        "import bitnet; bitnet.load_model; found = bitnet.generate",
    ],
)
def test_generate_is_the_function_however_its_package_was_imported(imports):
    script = f"{imports}; import inspect; assert 'prompt' in inspect.signature(found).parameters"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_version():
    assert isinstance(bitnet.__version__, str)
    assert bitnet.__version__


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="'bitnet' has no attribute 'nothing'"):
        _ = bitnet.nothing

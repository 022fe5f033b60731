import subprocess
import sys
from types import ModuleType

import pytest

from hf_tinyformer import adapters


def test_importing_the_package_does_not_import_peft() -> None:
    code = "import sys, hf_tinyformer; sys.exit('peft' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def fill_tables(path):
    package = path / "peft" / "utils"
    package.mkdir(parents=True)
    (path / "peft" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "constants.py").write_text(
        'TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING = {"llama": ["q_proj", "v_proj"]}\n'
        'TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING = {"llama": ["input_layernorm"]}\n'
        'OTHER = {"llama": ["q_proj"]}\n'
    )


@pytest.fixture
def peft_of_its_own(tmp_path, monkeypatch):
    """A stand-in for PEFT that nothing has imported yet."""
    fill_tables(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        del sys.modules[name]


def check_tables(constants: ModuleType) -> None:
    tables = {name: table for name, table in vars(constants).items() if not name.startswith("__")}
    assert tables == {
        "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING": {
            "llama": ["q_proj", "v_proj"],
            "tinyformer": ["q_proj", "v_proj"],
        },
        "TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING": {"llama": ["input_layernorm"]},
        "OTHER": {"llama": ["q_proj"]},
    }


def test_defaults_are_added_when_peft_is_imported_afterwards(peft_of_its_own):
    adapters.register_with_peft()
    adapters.register_with_peft()

    import peft.utils.constants

    check_tables(peft.utils.constants)


def test_defaults_are_added_when_peft_was_imported_before(peft_of_its_own, monkeypatch):
    monkeypatch.setattr(
        sys, "meta_path", [f for f in sys.meta_path if type(f).__module__ != adapters.__name__]
    )
    import peft.utils.constants

    adapters.register_with_peft()

    check_tables(peft.utils.constants)

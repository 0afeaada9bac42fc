"""compose.yaml against the Compose specification's own JSON schema, as the docker-compose package ships it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "docker-compose==1.29.2"  # the last one on PyPI; its schema is from before the top-level `name`


def test_compose_yaml_is_valid_by_the_specifications_schema(tmp_path: Path) -> None:
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), PACKAGE]
    subprocess.run(download, check=True, timeout=120)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        schema = json.loads(wheel.read("compose/config/compose_spec.json"))
    document = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert document.pop("name") == "mandate"
    jsonschema.Draft7Validator(schema).validate(document)  # it names a draft that never was

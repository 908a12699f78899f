"""What can be seen of the container images without building them."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("Dockerfile*"))
DEPENDENCIES, SOURCE = "pip install '.[lora]'", "pip install --no-deps"


def instructions(path: Path) -> list[tuple[str, str]]:
    """Name and rest of each instruction, with continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [tuple(line.split(None, 1)) for line in joined if line]  # type: ignore[misc]


def context() -> set[str]:
    """What .dockerignore lets into the build, of the top level."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return {rule[1:] for rule in rules if rule.startswith("!")}


def test_there_are_an_image_for_gpus_and_one_for_cpus():
    assert [path.name for path in FILES] == ["Dockerfile", "Dockerfile.cpu"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_reaches_the_build(path):
    for name, rest in instructions(path):
        if name == "COPY":
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source.split("/")[0] in context()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_base_is_pinned_and_cmdvid_runs_without_root(path):
    steps = instructions(path)
    (base,) = [rest for name, rest in steps if name == "FROM"]
    assert fnmatch(base, "*:*[0-9].[0-9]*.[0-9]*-*")
    users = [rest for name, rest in steps if name == "USER"]
    assert users
    assert not {"root", "0"} & {user.split(":")[0] for user in users}
    (entry,) = [rest for name, rest in steps if name == "ENTRYPOINT"]
    assert json.loads(entry) == ["cmdvid"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_change_of_the_source_leaves_the_layer_of_dependencies(path):
    steps = [f"{name} {rest}" for name, rest in instructions(path)]
    dependencies = next(i for i, step in enumerate(steps) if DEPENDENCIES in step)
    source = next(i for i, step in enumerate(steps) if step.endswith(" src src"))
    assert dependencies < source < next(i for i, step in enumerate(steps) if SOURCE in step)

"""Files for releases and contributors are well formed, and the files that they name exist."""

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest
import tomli
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    "file", sorted([*ROOT.glob(".github/**/*.yml"), ROOT / "compose.yaml", ROOT / "CITATION.cff"]), ids=lambda f: f.name
)
def test_yaml_files_are_well_formed(file: Path) -> None:
    assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_dockerfile_sources_exist() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]} <= {*copied}
    extras = re.findall(r"--extra (\w+)", text)
    assert {*extras} <= {*PROJECT["project"]["optional-dependencies"]}
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["train"]
    args = service["build"]["args"]
    stages = {*re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)}
    assert args.keys() == {"DEVICE"}
    assert {*re.findall(r"DEVICE=(\w+)", text)} <= stages == {"cpu", "cuda"}
    # A new volume begins with a copy of what the image has at its place: several GB of downloaded packages otherwise.
    assert "cache:/root/.cache" in service["volumes"]
    assert re.findall(r"(?:pip install|uv sync) (\S+)", text) == ["--no-cache-dir", "--no-cache"]


def test_kubernetes_example_is_consistent() -> None:
    """Service, Job and ranks refer to each other by name, and volumes and image exist."""
    text = (ROOT / "docs/distributed.md").read_text()
    service, job = yaml.safe_load_all(re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0])
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    (container,) = pod["containers"]
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert values["MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}"
    assert int(values["WORLD_SIZE"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert f"docker build -t {container['image']} " in (ROOT / "docs/guide/installing.md").read_text()


def test_ci_runs_documented_commands() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]


def test_metadata_has_urls_classifiers_and_readme() -> None:
    installed = metadata("graph-train")
    urls = PROJECT["project"]["urls"]
    assert installed.get_all("Project-URL") == [f"{label}, {url}" for label, url in urls.items()]
    # PyPI rejects longer labels.
    assert urls and all(url.startswith("https://") and len(label) <= 32 for label, url in urls.items())
    assert installed.get_all("Classifier") == PROJECT["project"]["classifiers"]
    assert str(installed.json["description"]).strip() == (ROOT / "README.md").read_text().strip()


def test_versions_agree_and_requirements_are_locked() -> None:
    version = PROJECT["project"]["version"]
    assert (
        yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version == metadata("graph-train")["Version"]
    )
    pinned = {line.split("==")[0] for line in PROJECT["tool"]["uv"]["constraint-dependencies"]}
    needed = [*PROJECT["project"]["dependencies"]]
    needed += [need for extra in PROJECT["project"]["optional-dependencies"].values() for need in extra]
    for need in needed:
        name = re.match(r"[\w-]+", need)[0]  # type: ignore[index]
        assert "==" in need or name in pinned, need
        assert "==" in need or re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", need), need

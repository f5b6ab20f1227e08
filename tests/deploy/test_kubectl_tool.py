"""tools/kubectl.py takes a kubectl that can render our components, and no other."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
import zipfile

import pytest

from deploy.manifests import ROOT


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("kubectl_tool", ROOT / "tools" / "kubectl.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake(folder, kustomize):
    """A kubectl that says of which kustomize it is."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "kubectl"
    program.write_text(f"#!/bin/sh\necho '{json.dumps({'kustomizeVersion': kustomize})}'\n")
    program.chmod(0o755)
    return program


def wheel(content, name="kubectl/kubectl"):
    """The wheel's onion: zip, tar, zip."""
    layer, package, whole = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as inner:
        inner.writestr(name, content)
    with tarfile.open(fileobj=package, mode="w:gz") as middle:
        entry = tarfile.TarInfo("package/lib/layer.zip")
        entry.size = len(layer.getvalue())
        middle.addfile(entry, io.BytesIO(layer.getvalue()))
    with zipfile.ZipFile(whole, "w") as outer:
        outer.writestr("aws_cdk/some.jsii.tgz", package.getvalue())
    return whole.getvalue()


@pytest.fixture
def requirements(tmp_path):
    path = tmp_path / "kubectl.txt"
    path.write_text("one==1\n")
    return path


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("v5.7.1", (5, 7)),
        ("v5.0.4-0.20230601165947-6ce0bf390ce3", (5, 0)),
        ("", (0, 0)),
        ("unknown", (0, 0)),
    ],
)
def test_the_version_of_its_kustomize_is_read(tool, tmp_path, said, version):
    assert tool.kustomize_version(fake(tmp_path, said)) == version


def test_a_program_that_does_not_run_has_no_version(tool, tmp_path):
    assert tool.kustomize_version(tmp_path / "nothing") == (0, 0)


def test_one_on_the_path_is_taken_when_it_is_new_enough(tool, tmp_path, requirements, monkeypatch):
    program = fake(tmp_path / "bin", "v5.1.0")
    monkeypatch.setenv("PATH", str(program.parent))
    assert tool.kubectl(tmp_path / "cache", requirements) == program


def test_an_old_one_on_the_path_is_passed_over_for_the_pinned(
    tool, tmp_path, requirements, monkeypatch
):
    monkeypatch.setenv("PATH", f"{fake(tmp_path / 'old', 'v5.0.4').parent}:/bin:/usr/bin")
    new = fake(tmp_path / "new", "v5.7.1").read_bytes()
    monkeypatch.setattr(tool, "MACHINES", {tool.platform.machine()})
    monkeypatch.setattr(tool, "_download", lambda _: wheel(new))
    cache = tmp_path / "cache"
    assert tool.kubectl(cache, requirements) == cache / "kubectl"
    assert (cache / "kubectl").read_bytes() == new
    # The second time nothing is downloaded; a changed pin is.
    monkeypatch.setattr(tool, "_download", lambda _: pytest.fail("downloaded again"))
    assert tool.kubectl(cache, requirements) == cache / "kubectl"
    requirements.write_text("one==2\n")
    with pytest.raises(pytest.fail.Exception):
        tool.kubectl(cache, requirements)


def test_a_wheel_of_another_shape_is_an_error_that_says_what_to_do(tool):
    with pytest.raises(tool.KubectlError, match=r"holds no kubectl .* install kubectl 1\.31"):
        tool._from_wheel(wheel(b"", name="helm/helm"))


def test_another_kind_of_machine_is_an_error_that_says_what_to_do(
    tool, tmp_path, requirements, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tool, "MACHINES", frozenset())
    with pytest.raises(tool.KubectlError, match=r"install kubectl 1\.31 or newer"):
        tool.kubectl(tmp_path / "cache", requirements)


def test_the_pin_has_one_package_one_hash_and_no_address():
    text = (ROOT / "requirements" / "kubectl.txt").read_text(encoding="utf-8")
    assert text.count("==") == text.count("--hash=sha256:") == 1
    assert "://" not in text

"""The doctor: it finds what is here, and every fault comes with its remedy."""

import json

from xd3d.pipeline.workspace import Workspace


def findings_of(done):
    facts = json.loads(done.stdout.splitlines()[-1])
    return {finding["name"]: finding for finding in facts["findings"]}


def test_a_healthy_machine_has_no_fault_and_names_backend_and_model(xd3d, tmp_path):
    done = xd3d("doctor", "--json", XD3D_HOME=str(tmp_path / "work"))
    assert done.returncode == 0, done.stdout + done.stderr
    findings = findings_of(done)
    assert findings["torch"]["status"] == "ok"
    assert findings["sparse backend"]["detail"]
    spconv = findings["spconv"]
    assert "spconv-cu" in spconv["detail"]
    assert spconv["status"] == "note" or "compiled for GPUs of compute capability" in spconv["detail"]
    assert findings["model tiny-street"]["status"] == "ok"
    assert all(finding["remedy"] for finding in findings.values() if finding["status"] != "ok")


def test_a_data_root_that_is_gone_is_a_fault_with_its_remedy(xd3d, tmp_path):
    Workspace(home=tmp_path / "work").remember_root("nuscenes", tmp_path / "gone")
    done = xd3d("doctor", "--json", XD3D_HOME=str(tmp_path / "work"))
    assert done.returncode == 1
    finding = findings_of(done)["nuscenes root"]
    assert finding["status"] == "fault"
    assert "xd3d prepare" in finding["remedy"]

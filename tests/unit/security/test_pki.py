"""The keys and certificates of a control plane: what is made, with which modes, and when it is made anew."""

import datetime
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from controlplane.pki import certificates
from controlplane.pki.authority import Authority

NAMES = ["kubernetes", "10.96.0.1", "localhost"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "pki")
    made.renew(NAMES)
    return made


def certificate(authority: Authority, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((authority.folder / f"{name}.crt").read_bytes())


def test_private_keys_are_private(authority: Authority) -> None:
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700
    keys = sorted(path.name for path in authority.folder.glob("*.key"))
    assert keys == ["apiserver.key", "ca.key", "front-proxy-ca.key", "kubelet-client.key", "sa.key"]
    assert {stat.S_IMODE((authority.folder / key).stat().st_mode) for key in keys} == {0o600}


def test_nothing_is_made_again_without_need(authority: Authority) -> None:
    before = {path: path.read_bytes() for path in authority.folder.iterdir()}
    again = Authority(authority.folder)
    assert again.renew(NAMES) is False
    assert {path: path.read_bytes() for path in authority.folder.iterdir()} == before


def test_a_new_name_gets_a_new_certificate(authority: Authority) -> None:
    assert authority.renew([*NAMES, "192.0.2.7"]) is True
    assert "192.0.2.7" in certificates.names_of(certificate(authority, "apiserver"))


def test_what_is_about_to_expire_is_renewed(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "_BACKDATED", datetime.timedelta(days=300))
    monkeypatch.setattr(certificates, "LIFETIME", datetime.timedelta(days=90))
    authority.renew([*NAMES, "old.test"])
    assert certificates.is_about_to_expire(certificate(authority, "apiserver"))
    monkeypatch.undo()
    assert authority.renew([*NAMES, "old.test"]) is True
    assert not certificates.is_about_to_expire(certificate(authority, "apiserver"))


def test_a_crash_between_key_and_certificate_is_mended(authority: Authority) -> None:
    other = certificates.make_ca("other")
    certificates.write(authority.folder / "apiserver.key", other.key_pem)
    assert authority.renew(NAMES) is True
    pair = certificates.load(authority.folder / "apiserver.crt", authority.folder / "apiserver.key")
    assert pair
    assert pair.is_whole


def test_a_certificate_of_another_ca_of_the_same_name_is_replaced(authority: Authority) -> None:
    stranger = certificates.issue(certificates.make_ca("kubernetes"), "kube-apiserver", server_names=NAMES, client=False)
    authority._keep("apiserver", stranger)
    assert authority.renew(NAMES) is True
    certificate(authority, "apiserver").verify_directly_issued_by(authority.ca.certificate)


def test_a_ca_that_does_not_fit_its_key_is_an_error(authority: Authority) -> None:
    certificates.write(authority.folder / "ca.key", certificates.make_ca("kubernetes").key_pem)
    with pytest.raises(ValueError, match="is not the key of ca"):
        Authority(authority.folder)


def test_a_kubeconfig_is_kept_while_it_is_good(authority: Authority, tmp_path: Path) -> None:
    path = tmp_path / "admin.kubeconfig"
    authority.write_kubeconfig(path, "https://192.0.2.1:6443", "admin", ["system:masters"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    authority.write_kubeconfig(path, "https://192.0.2.1:6443", "admin", ["system:masters"])
    assert path.read_bytes() == before
    authority.write_kubeconfig(path, "https://192.0.2.2:6443", "admin", ["system:masters"])
    assert yaml.safe_load(path.read_text())["clusters"][0]["cluster"]["server"] == "https://192.0.2.2:6443"
    path.write_text("not: [a kubeconfig")
    authority.write_kubeconfig(path, "https://192.0.2.2:6443", "admin", ["system:masters"])
    assert authority.is_good_kubeconfig(path, "https://192.0.2.2:6443")

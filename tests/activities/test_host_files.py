"""Identity, token and wiping: files on the host (protocol sections 1.2, 3.2, 7.1, 8.1)."""

import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from temporalio.exceptions import ApplicationError

from activities.identity import device_id_of, identity_document, read_identity
from activities.logs import tidy
from models import tokens, vnc
from models.messages import MintNodeToken, PrepareIdentity, WipeRuntime
from tests.activities.conftest import Desk

VECTORS = json.loads((Path(__file__).parent.parent / "node-protocol-vectors.json").read_text())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("pair", VECTORS["keypairs"], ids=lambda pair: pair["name"])
def test_identity_document_is_the_protocols(pair: dict[str, str], tmp_path: Path) -> None:
    document = identity_document(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(pair["seed_hex"])))
    assert document == {
        "deviceId": pair["device_id"],
        "publicKey": pair["public_key_spki_b64url"],
        "privateKey": pair["private_key_pkcs8_b64url"],
    }
    assert device_id_of(tokens.b64url_strict(pair["public_key_spki_b64url"]) or b"") == pair["device_id"]
    path = tmp_path / "identity.json"
    path.write_text(json.dumps(document))
    identity = read_identity(path)
    assert identity is not None and identity.device_id == pair["device_id"]


def test_identity_is_made_once_with_the_modes_of_the_protocol(desk: Desk) -> None:
    os.umask(0o022)
    request = PrepareIdentity(environment_id=desk.id, generation=1)
    first = desk.run(desk.host.prepare_identity, request)
    again = desk.run(desk.host.prepare_identity, request.model_copy(update={"generation": 2}))
    assert first.created and not again.created
    assert (again.device_id, again.public_key) == (first.device_id, first.public_key)
    path = desk.home / "identity" / "desktop-node" / "device-identity.json"
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n"
    assert set(json.loads(text)) == {"deviceId", "publicKey", "privateKey"}
    assert mode(path) == 0o600
    for name in (
        "",
        "identity",
        "identity/desktop-node",
        "secrets",
        "runtime-home",
        "runtime-home/desktop-node",
    ):
        assert mode(desk.home / name) == 0o700, name


def test_identity_rotates_once_per_generation(desk: Desk) -> None:
    def prepare(generation: int, rotate: bool) -> str:
        request = PrepareIdentity(environment_id=desk.id, generation=generation, rotate=rotate)
        return str(desk.run(desk.host.prepare_identity, request).device_id)

    first = prepare(1, False)
    second = prepare(2, True)
    assert second != first
    assert prepare(2, True) == second
    assert prepare(3, False) == second
    assert prepare(1, True) == second, "an older generation's repetition rotates nothing"
    assert prepare(4, True) not in (first, second)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"deviceId": "dev_x"}', "null"])
def test_damaged_identity_is_an_error_until_it_is_rotated(desk: Desk, damage: str) -> None:
    desk.prepare()
    path = desk.home / "identity" / "desktop-node" / "device-identity.json"
    path.write_text(damage)
    request = PrepareIdentity(environment_id=desk.id, generation=2)
    with pytest.raises(ApplicationError, match="rotate_identity") as caught:
        desk.run(desk.host.prepare_identity, request)
    assert caught.value.type == "internal" and caught.value.non_retryable
    assert desk.run(desk.host.prepare_identity, request.model_copy(update={"rotate": True})).created


def test_identity_of_a_swapped_key_is_damaged(desk: Desk) -> None:
    desk.prepare()
    path = desk.home / "identity" / "desktop-node" / "device-identity.json"
    document = json.loads(path.read_text())
    document["privateKey"] = VECTORS["keypairs"][0]["private_key_pkcs8_b64url"]
    path.write_text(json.dumps(document))
    assert read_identity(path) is None


def test_token_is_minted_once_per_generation_and_only_its_hash_is_reported(desk: Desk) -> None:
    def mint(generation: int) -> dict[str, object]:
        request = MintNodeToken(environment_id=desk.id, generation=generation, ttl_seconds=600)
        return dict(desk.run(desk.host.mint_node_token, request).model_dump())

    first = mint(1)
    path = desk.home / "secrets" / "gateway-token"
    text = path.read_text()
    assert text.endswith("\n") and tokens.parse(text.strip()) is not None
    assert first["token_sha256"] == tokens.sha256_hex(text.strip())
    assert text.strip() not in json.dumps(first, default=str)
    assert mode(path) == 0o600 and mode(desk.home / "secrets" / "gateway-token.json") == 0o600
    assert text.split(".")[3].strip() not in (desk.home / "secrets" / "gateway-token.json").read_text()
    assert mint(1) == first and path.read_text() == text
    second = mint(2)
    assert second["token_sha256"] != first["token_sha256"]
    with pytest.raises(ApplicationError) as caught:
        mint(1)
    assert caught.value.type == "internal"
    assert tokens.sha256_hex(path.read_text().strip()) == second["token_sha256"]


def test_token_that_does_not_match_its_record_is_minted_anew(desk: Desk) -> None:
    before = desk.prepare()
    (desk.home / "secrets" / "gateway-token").write_text("half a tok")
    after = desk.prepare()
    assert after.token_sha256 != before.token_sha256


def test_the_vnc_password_follows_the_token(desk: Desk) -> None:
    desk.prepare()
    path, token = desk.home / "secrets" / "vnc-password", desk.home / "secrets" / "gateway-token"
    first = path.read_bytes()
    assert first == vnc.password_file(tokens.vnc_password(token.read_text().strip()))
    assert mode(path) == 0o600
    path.unlink()
    desk.prepare()
    assert path.read_bytes() == first, "a token of a version without passwords gets its own"
    desk.run(desk.host.mint_node_token, MintNodeToken(environment_id=desk.id, generation=2, ttl_seconds=600))
    assert path.read_bytes() != first
    assert path.read_bytes() == vnc.password_file(tokens.vnc_password(token.read_text().strip()))


def test_wipe_empties_the_runtime_home_and_keeps_the_identity(desk: Desk, tmp_path: Path) -> None:
    desk.prepare()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("x")
    home = desk.home / "runtime-home"
    (home / "deep" / "er").mkdir(parents=True)
    (home / "deep" / "file").write_text("x")
    (home / "link").symlink_to(outside)
    if os.geteuid() == 0:
        os.chown(home / "deep", 4321, 4321)
    identity = (desk.home / "identity" / "desktop-node" / "device-identity.json").read_text()
    request = WipeRuntime(environment_id=desk.id, generation=1)
    desk.run(desk.host.wipe_runtime, request)
    desk.run(desk.host.wipe_runtime, request)
    assert [path.name for path in home.iterdir()] == ["desktop-node"] and mode(home) == 0o700
    assert (outside / "keep").exists()
    assert (desk.home / "identity" / "desktop-node" / "device-identity.json").read_text() == identity


def test_wipe_of_everything_leaves_nothing_and_nothing_comes_back(desk: Desk) -> None:
    desk.prepare()
    request = WipeRuntime(environment_id=desk.id, generation=1, everything=True)
    desk.run(desk.host.wipe_runtime, request)
    desk.run(desk.host.wipe_runtime, request)
    assert not desk.home.exists()
    with pytest.raises(ApplicationError, match="deleted"):
        desk.prepare(1)
    assert not desk.home.exists()


@pytest.mark.parametrize("bad", ["../../etc", "..", "", "a/b", "3F0B1D52-6C33-4C1F-9A52-0C3D6F0F7F11"])
def test_ids_that_name_another_directory_are_refused(desk: Desk, bad: str) -> None:
    for step, request in (
        (desk.host.wipe_runtime, WipeRuntime(environment_id=bad, generation=1, everything=True)),
        (desk.host.prepare_identity, PrepareIdentity(environment_id=bad, generation=1)),
        (desk.host.mint_node_token, MintNodeToken(environment_id=bad, generation=1, ttl_seconds=1)),
    ):
        with pytest.raises(ApplicationError, match="not an environment id"):
            desk.run(step, request)


def test_an_environment_directory_that_is_a_link_is_refused(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "keep").write_text("x")
    desk.home.parent.mkdir(parents=True)
    desk.home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ApplicationError, match="symbolic link"):
        desk.run(desk.host.wipe_runtime, WipeRuntime(environment_id=desk.id, generation=1, everything=True))
    assert (tmp_path / "elsewhere" / "keep").exists()


def test_a_full_or_readonly_disk_is_an_internal_error(desk: Desk) -> None:
    desk.home.parent.parent.mkdir(parents=True)
    desk.home.parent.write_text("a file where the directory should be")
    with pytest.raises(ApplicationError) as caught:
        desk.prepare()
    assert caught.value.type == "internal"


def test_log_lines_are_made_fit_for_history() -> None:
    raw = (
        b"\x1b[31mred\x1b[0m  \r\n\n\x00nul\xff\n   \n"
        + b"x" * 2000
        + b"\ntoken tyrum-token.v1.abc.def-_ end\n"
    )
    red, nul, long, token = tidy(raw)
    assert (red, nul) == ("red", "nul\ufffd")
    assert len(long) == 500
    assert token == "token tyrum-token.v1.[masked] end"
    assert len(tidy(b"line\n" * 1000)) == 200

"""Local disk: killed writers, full disks, permissions, links and pipes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eigenmerge.core.errors import StoreError
from eigenmerge.core.storage.store import Store

WRITER = """
import sys, time
from eigenmerge.core.storage.store import Store
with Store(sys.argv[1]).open_write("a/object") as writer:
    writer.write(b"x" * 100_000)
    print("begun", flush=True)
    time.sleep(60)
"""


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


class TestKilledWriters:
    def test_their_temporary_files_are_invisible_and_removed(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            assert len(files(tmp_path)) == 1
            assert list(store.list()) == []
            assert not store.exists("a/object")
            assert store.remove_abandoned() == 0  # its writer is alive
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert store.remove_abandoned(older_than_seconds=3600) == 0
        assert store.remove_abandoned() == 1
        assert files(tmp_path) == []

    def test_the_file_of_an_active_writer_is_kept(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        with store.open_write("x") as writer:
            writer.write(b"1")
            assert Store(str(tmp_path)).remove_abandoned() == 0
            writer.write(b"2")
        assert store.read("x") == b"12"


class TestFullDisks:
    CODE = """
import resource, signal, sys
from eigenmerge.core.errors import StoreError
from eigenmerge.core.storage.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(sys.argv[1])
store.write("parts/old", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
data = bytes(2_000_000)
def chunks(key):
    with store.open_write(key) as writer:
        for _ in range(20):
            writer.write(data[:100_000])
def assemble(key):
    from eigenmerge.core.storage.assembly.assemble_file import assemble_file
    assemble_file(store, key, b"head", Store(sys.argv[2]), [("part", 0, 2_000_000)])
for action in (lambda key: store.write(key, data), lambda key: store.create(key, data), chunks, assemble):
    for key in ("parts/new", "parts/old"):
        try:
            if action(key) is not False:
                sys.exit("no error")
        except StoreError as error:
            assert "disk is full" in str(error) and key in str(error), error
assert store.read("parts/old") == b"old"
"""

    def test_no_partial_file_is_left(self, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "part").write_bytes(bytes(2_000_000))
        arguments = [str(tmp_path / "store"), str(tmp_path / "source")]
        subprocess.run([sys.executable, "-c", self.CODE, *arguments], check=True, timeout=60)
        assert files(tmp_path / "store") == ["old"]

    def test_a_file_system_without_space(self, tmp_path: Path) -> None:
        mount = tmp_path / "small"
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
        try:
            mounted = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            mounted = False
        if not mounted:
            pytest.skip("mounting a small file system needs root")
        try:
            store = Store(str(mount))
            store.write("kept", b"1")
            for action in (
                lambda: store.write("big", bytes(2**21)),
                lambda: store.create("big", bytes(2**21)),
                lambda: self._in_chunks(store),
            ):
                with pytest.raises(StoreError, match=r"big: the disk is full"):
                    action()
            assert files(mount) == ["kept"]
        finally:
            subprocess.run(["umount", str(mount)], check=True)

    @staticmethod
    def _in_chunks(store: Store) -> None:
        with store.open_write("big") as writer:
            for _ in range(32):
                writer.write(bytes(2**16))


class TestPermissions:
    def test_files_have_the_permissions_of_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            Store(str(tmp_path)).write("x", b"1")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640

    def test_a_directory_without_write_permission(self, tmp_path: Path) -> None:
        blocked = tmp_path / "blocked"
        blocked.mkdir()
        (blocked / "x").write_bytes(b"1")
        blocked.chmod(0o555)
        code = (
            "import os, sys\n"
            "from eigenmerge.core.errors import StoreError\n"
            "from eigenmerge.core.storage.store import Store\n"
            "store = Store(sys.argv[1])\n"
            "store.exists('x')  # imports modules while they are still readable\n"
            "os.getuid() or os.setuid(65534)\n"
            "for action in (lambda: store.write('new', b''), lambda: store.create('new', b''),\n"
            "               lambda: store.delete(['x']), lambda: store.open_write('new').__enter__()):\n"
            "    try: action()\n"
            "    except StoreError as error: assert 'permission denied' in str(error), error\n"
            "    else: sys.exit('no error')\n"
        )
        for folder in (tmp_path, *tmp_path.parents):  # the other user must be able to reach the directory
            if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
                folder.chmod(folder.stat().st_mode | 0o055)
        try:
            subprocess.run([sys.executable, "-c", code, str(blocked)], check=True, timeout=60)
        finally:
            blocked.chmod(0o755)
        assert files(blocked) == ["x"]

    def test_a_file_in_place_of_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StoreError, match="expected a directory, found a file"):
            Store(str(tmp_path / "file" / "below")).write("x", b"1")
        with pytest.raises(StoreError, match="expected a directory, found a file"):
            Store(str(tmp_path)).write("file/x", b"1")

    def test_a_directory_in_place_of_a_file(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        store.write("folder/x", b"1")
        with pytest.raises(StoreError, match="expected a file, found a directory"):
            store.write("folder", b"1")
        with pytest.raises(StoreError):
            store.read("folder")
        assert files(tmp_path) == ["x"]


class TestLinks:
    def test_links_to_files_are_followed(self, tmp_path: Path) -> None:
        """The cache of the Hub consists of links."""
        (tmp_path / "blobs").mkdir()
        (tmp_path / "blobs" / "content").write_bytes(b"12345")
        (tmp_path / "snapshot").mkdir()
        (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/content")
        store = Store(str(tmp_path / "snapshot"))
        assert [(info.key, info.size) for info in store.list()] == [("model.safetensors", 5)]
        assert store.read("model.safetensors") == b"12345"

    def test_dangling_links_and_pipes_are_not_objects(self, tmp_path: Path) -> None:
        (tmp_path / "dangling").symlink_to("nowhere")
        os.mkfifo(tmp_path / "pipe")
        store = Store(str(tmp_path))
        assert list(store.list()) == []
        started = time.monotonic()
        with pytest.raises(StoreError):
            store.info("pipe")
        with pytest.raises(StoreError):
            store.read("pipe")  # and does not wait for a writer
        assert time.monotonic() - started < 5

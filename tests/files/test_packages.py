"""What the Makefile installs: no service of it runs or is enabled afterwards."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "tools" / "packages.sh"

# Stands for apt-get and the scripts of a package that has a service.
APT = """#!/bin/sh
echo "apt-get $*"
[ "$1" = install ] || exit 0
/usr/sbin/policy-rc.d new start || echo "not started: $?"
mkdir -p /etc/systemd/system/new.target.wants /etc/systemd/system/old.target.wants
ln -s /lib/systemd/system/new.service /etc/systemd/system/new.target.wants/new.service
ln -s /lib/systemd/system/new.timer /etc/systemd/system/old.target.wants/new.timer
mkdir -p /etc/rc2.d
ln -s ../init.d/new /etc/rc2.d/S01new
exit "$APT_STATUS"
"""

# In a mount namespace of its own: what is written to /etc and /usr/sbin is gone afterwards.
WITHIN = """
set -eu
mount -t tmpfs none "$FOLDER"
for place in etc usr/sbin; do
    mkdir -p "$FOLDER/$place/up" "$FOLDER/$place/work"
    cd "$FOLDER/$place"
    mount -t overlay none -o "lowerdir=/$place,upperdir=up,workdir=work" "/$place"
done
rm -f /usr/sbin/policy-rc.d
mkdir -p /etc/systemd/system/old.target.wants
ln -s /lib/systemd/system/old.service /etc/systemd/system/old.target.wants/old.service
sh "$SCRIPT" new-package || echo "failed: $?"
echo ---
cd /etc/systemd/system
find new.target.wants old.target.wants -type l 2>/dev/null || true
find /etc/rc2.d -name 'S*new'
ls /usr/sbin/policy-rc.d 2>/dev/null || true
"""


@pytest.mark.root
@pytest.mark.parametrize("status", [0, 100])
def test_no_service_is_left_enabled(tmp_path: Path, status: int) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    apt = programs / "apt-get"
    apt.write_text(APT)
    apt.chmod(0o755)
    (tmp_path / "mounted").mkdir()
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", WITHIN],
        env={
            "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
            "FOLDER": str(tmp_path / "mounted"),
            "SCRIPT": str(SCRIPT),
            "APT_STATUS": str(status),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    said, _, left = ran.stdout.partition("---\n")
    assert "apt-get install -qq -y --no-install-recommends new-package" in said
    assert "not started: 101" in said
    assert "new.service is installed and not enabled" in said
    assert ("failed: 100" in said) is (status == 100)
    assert left.split() == ["old.target.wants/old.service"]


PROMTOOL = "#!/bin/sh\necho promtool of $0\n"

# Stands for Debian's apt-get: has the packages of one release, and knows them after an update only.
ARCHIVE = """#!/bin/sh
echo "apt-get $*" >>"$ASKED"
case $1 in
update) touch updated ;;
download) [ -e updated ] && [ "$3" = "$PACKAGE" ] && cp "$DEB" . ;;
esac
"""


@pytest.mark.parametrize("package", ["prometheus", "promtool"], ids=["bookworm", "trixie"])
def test_promtool_is_taken_from_the_package_that_has_it(tmp_path: Path, package: str) -> None:
    """Up to Debian 12 it is in prometheus, from 13 on it has a package of its own."""
    content, programs, venv = tmp_path / "content", tmp_path / "programs", tmp_path / "venv"
    for folder in (content / "DEBIAN", content / "usr/bin", programs, venv / "bin"):
        folder.mkdir(parents=True)
    (content / "DEBIAN/control").write_text(
        f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: us\nDescription: none\n"
    )
    (content / "usr/bin/promtool").write_text(PROMTOOL)
    (content / "usr/bin/promtool").chmod(0o755)
    deb = tmp_path / f"{package}_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", content, deb], check=True, capture_output=True)
    # Only what the recipe needs, and no promtool of this machine.
    for name in ("cp", "dpkg-deb", "rm", "tar", "touch", "sh"):
        found = shutil.which(name)
        assert found is not None, name
        (programs / name).symlink_to(found)
    for name, text in (("apt-get", ARCHIVE), ("sudo", '#!/bin/sh\nexec "$@"\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (venv / "created").touch()
    make = shutil.which("make")
    assert make is not None
    ran = subprocess.run(
        [
            *(make, "-s", "-o", "system-base", "-o", f"{venv}/created"),
            *(f"VENV={venv}", "TYPED=", f"{venv}/bin/promtool"),
        ],
        cwd=SCRIPT.parents[1],
        env={
            "PATH": str(programs),
            "DEB": str(deb),
            "PACKAGE": package,
            "ASKED": str(tmp_path / "asked"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    taken = subprocess.run([venv / "bin" / "promtool"], capture_output=True, text=True, check=True)
    assert taken.stdout.startswith("promtool of ")
    assert "apt-get update -qq" in (tmp_path / "asked").read_text()
    assert [one.name for one in venv.glob("*.deb")] == []

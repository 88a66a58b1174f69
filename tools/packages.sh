#!/bin/sh
# Installs packages of Debian and leaves no service of theirs running or enabled: the commands of the
# Makefile start what they need by themselves, and nothing else is to listen, now or after a boot.
# As root: sh tools/packages.sh PACKAGE...
set -eu
export DEBIAN_FRONTEND=noninteractive

policy=/usr/sbin/policy-rc.d # what invoke-rc.d(8) asks before it starts a service
folder=$(mktemp -d)
ours=
end() {
    rm -rf "$folder"
    if [ "$ours" ]; then rm -f "$policy"; fi
}
trap end EXIT
trap 'exit 1' HUP INT TERM
if [ ! -e "$policy" ]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

# The links by which systemd starts a unit, and those of sysvinit. What was enabled stays so.
enabled() {
    find /etc/systemd/system /etc/systemd/user /etc/rc[S2345].d -type l \
        \( -path '*.wants/*' -o -path '*.requires/*' -o -path '/etc/rc*/S*' \) 2>/dev/null | sort
}
enabled >"$folder/before"
apt-get update -qq
status=0
apt-get install -qq -y --no-install-recommends "$@" || status=$?
enabled | comm -13 "$folder/before" - >"$folder/new"

while read -r link; do
    case $link in
    /etc/rc*) # S01name
        name=${link##*/}
        update-rc.d "$(echo "$name" | sed 's/^S[0-9]*//')" disable >/dev/null 2>&1 || rm -f "$link"
        ;;
    *)
        rm -f "$link"
        rmdir "${link%/*}" 2>/dev/null || true
        echo "${link##*/} is installed and not enabled"
        ;;
    esac
done <"$folder/new"
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
exit "$status"

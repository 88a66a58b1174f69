#!/bin/sh
# Makes the secrets of docker-compose.yml in the folder secrets/, or in another one that is named.
# Those that are there stay. The files can be read by all, for the users inside the containers are
# others than the one outside; the folder can be entered by its owner alone.
set -eu
folder=${1:-$(dirname "$0")/../secrets}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
umask 022
for name in redis_password operator_token view_token grafana_password; do
    [ -s "$name" ] || od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n' >"$name"
done
printf 'operator:operate:%s\nprometheus:view:%s\n' "$(cat operator_token)" "$(cat view_token)" >ops_tokens
